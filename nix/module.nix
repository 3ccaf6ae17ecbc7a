# services.portreeve. The units are those of the package and of 'portreeve model show --unit'; what stands here is only what
# NixOS wants beside them: it reads no [Install] section, and writes what it is told into drop-ins. docs/nixos.md has the rest.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;

  cfg = config.services.portreeve;
  format = pkgs.formats.json { };
  program = lib.getExe cfg.package;

  # JSON is YAML.
  settings = format.generate "portreeve.yaml" cfg.settings;
  models = format.generate "portreeve-models.yaml" { inherit (cfg.settings) models; };
  # What compose files publish is not known where a system is built.
  known = format.generate "portreeve-known.yaml" (removeAttrs cfg.settings [ "compose" ]);
  checked = pkgs.runCommand "portreeve-config.yaml" { } ''
    ${program} config check --config ${known}
    cp ${settings} $out
  '';

  names = lib.attrNames cfg.models;
  unitOf = name: "portreeve-model-${name}";
  modelUnits = pkgs.runCommand "portreeve-model-units" { } ''
    mkdir -p $out/lib/systemd/system
    ${lib.concatMapStrings (name: ''
      ${program} model --config ${models} show ${lib.escapeShellArg name} --unit --offline > $out/lib/systemd/system/${lib.escapeShellArg (unitOf name)}.service
    '') names}
    sed -i '/^Documentation=/s|/usr/share/doc|${cfg.package}/share/doc|' $out/lib/systemd/system/*
  '';

  gates = lib.mapAttrs' (
    unit: services:
    lib.nameValuePair (lib.removeSuffix ".service" unit) (
      let
        before = map (service: "portreeve-gate@${service}.service") services;
      in
      {
        requires = before;
        after = before;
      }
    )
  ) cfg.gates;

  # What backends serve where nothing is said; tests/nix.rs asks the program.
  ports = {
    vllm = 8000;
    llamacpp = 8080;
    ollama = 11434;
    tgi = 3000;
    sglang = 30000;
  };
  portOf = model: if (model.port or null) == null then ports.${model.backend} or null else model.port;
  # NixOS's own services that serve models or stand beside them.
  neighbours = lib.filter (name: config.services.${name}.enable or false) [
    "llama-cpp"
    "ollama"
    "open-webui"
  ];
  isContainer = model: (model.container or null) == true;
  has = engine: config.virtualisation.${engine}.enable or false;

  collisions = lib.concatMap (
    name:
    map (neighbour: {
      assertion = (config.services.${neighbour}.port or null) != portOf cfg.models.${name};
      message = ''
        services.portreeve.models.${name} and services.${neighbour} both serve port ${toString (portOf cfg.models.${name})}.
        Either give the model another one (services.portreeve.models.${name}.port), or take the other service off it
        (services.${neighbour}.port, or services.${neighbour}.enable = false).
      '';
    }) neighbours
  ) names;

  programs = map (name: {
    assertion = isContainer cfg.models.${name} || (cfg.models.${name}.program or null) != null;
    message = ''
      services.portreeve.models.${name} is a process, and no unit finds its server by PATH.
      Either name it (services.portreeve.models.${name}.program = "''${pkgs.llama-cpp}/bin/llama-server"), or run it in a
      container (services.portreeve.models.${name}.container = true).
    '';
  }) names;

  engines = map (
    name:
    let
      engine = cfg.models.${name}.engine or null;
      isThere = if engine == null then has "docker" || has "podman" else has engine;
    in
    {
      assertion = !isContainer cfg.models.${name} || isThere;
      message = ''
        services.portreeve.models.${name} runs in a container, and this system has no ${if engine == null then "engine" else engine}.
        Either enable it (virtualisation.${if engine == null then "podman" else engine}.enable = true), or run the model as a process
        (services.portreeve.models.${name}.container = false).
      '';
    }
  ) names;

  # Each of NixOS's containers is a unit of its own, and no podman-restart.service starts them.
  podmans = lib.optionals ((config.virtualisation.oci-containers.backend or null) == "podman") (
    lib.mapAttrsToList (name: container: "${container.serviceName or "podman-${name}"}.service") (
      config.virtualisation.oci-containers.containers or { }
    )
  );
in
{
  options.services.portreeve = {
    enable = lib.mkEnableOption "portreeve, which ends what dead containers, units and parents left behind, and keeps ports and GPUs free";

    package = mkOption {
      type = types.package;
      default = pkgs.portreeve or (pkgs.callPackage ./package.nix { });
      defaultText = lib.literalExpression "pkgs.portreeve";
      description = "The package.";
    };

    onBoot = mkOption {
      type = types.bool;
      default = true;
      description = "Whether to end what was left behind whenever Docker starts, and before Podman starts containers at boot.";
    };

    onShutdown = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to stop all models, and end what is left behind, at shutdown, while the engines are still up.";
    };

    timer = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether to end what was left behind some minutes after the boot and every six hours. Another time:
        `systemd.timers.portreeve-sweep.timerConfig`.
      '';
    };

    settings = mkOption {
      type = types.submodule { freeformType = format.type; };
      default = { };
      example = lib.literalExpression ''
        {
          defaults.grace = "10s";
          services.aidb = { runs_in.unit = "aidb.service"; ports = [ 8091 8791 ]; };
        }
      '';
      description = "The settings, as in /etc/portreeve/config.yaml: docs/configuration.md. They are checked as the system is built.";
    };

    models = mkOption {
      type = types.attrsOf (
        types.submodule {
          freeformType = format.type;
          options = {
            autoStart = mkOption {
              type = types.bool;
              default = false;
              description = "Whether it is started at boot, which does not wait for it.";
            };
            backend = mkOption {
              type = types.enum (lib.attrNames ports);
              description = "What serves it.";
            };
            model = mkOption {
              type = types.str;
              description = "Its weights: a name that the backend knows, or a path.";
            };
          };
        }
      );
      default = { };
      example = lib.literalExpression ''
        {
          qwen = {
            backend = "llamacpp";
            model = "/srv/models/qwen.gguf";
            program = "''${pkgs.llama-cpp}/bin/llama-server";
            port = 8081;
            autoStart = true;
          };
        }
      '';
      description = "Models, each with a unit of its own. Beside these options: the keys of `models.NAME` in docs/configuration.md.";
    };

    gates = mkOption {
      type = types.attrsOf (types.listOf types.str);
      default = { };
      example = {
        podman-aidb = [ "aidb" ];
      };
      description = "By unit, the services and models whose ports and GPUs must be free before it starts.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = collisions ++ programs ++ engines;

    services.portreeve.settings.models = lib.mapAttrs (_: model: removeAttrs model [ "autoStart" ]) cfg.models;

    environment.systemPackages = [ cfg.package ];
    environment.etc."portreeve/config.yaml".source = checked;

    systemd.packages = [ cfg.package ] ++ lib.optional (names != [ ]) modelUnits;

    systemd.services = lib.mkMerge [
      gates

      (lib.mkIf cfg.onBoot {
        portreeve-boot = {
          wantedBy = [
            "docker.service"
            "podman-restart.service"
          ] ++ lib.optional (podmans != [ ]) "multi-user.target";
          before = podmans;
        };
      })

      (lib.mkIf cfg.onShutdown {
        # A change of it stops no model, by its RefuseManualStop=; neither does its end, where portreeve is taken off the system.
        portreeve-shutdown = {
          wantedBy = [ "multi-user.target" ];
          unitConfig.X-StopOnRemoval = false;
        };
      })

      (lib.mkIf (lib.any (model: model.autoStart) (lib.attrValues cfg.models)) {
        # A switch starts anew what a target wants and is not active: a model that was stopped by hand would be back.
        portreeve-models = {
          wantedBy = [ "multi-user.target" ];
          restartIfChanged = false;
          serviceConfig.RemainAfterExit = true;
        };
      })

      # A new path in the store is no reason to load a model anew: 'portreeve model restart' is.
      (lib.mapAttrs' (
        name: model:
        lib.nameValuePair (unitOf name) {
          wantedBy = lib.optional model.autoStart "portreeve-models.target";
          restartIfChanged = false;
        }
      ) cfg.models)
    ];

    # A switch starts active targets anew, and would wait until the last model has loaded.
    systemd.targets = lib.mkIf (cfg.models != { }) {
      portreeve-models.unitConfig.X-OnlyManualStart = true;
    };

    systemd.timers = lib.mkIf cfg.timer {
      portreeve-sweep.wantedBy = [ "timers.target" ];
    };
  };
}
