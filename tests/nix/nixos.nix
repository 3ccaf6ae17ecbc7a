# As much of NixOS as nix/module.nix says something to, and how it makes files of that: nixos/lib/systemd-lib.nix of nixpkgs
# (generateUnits: packages first, what modules say of the same unit as a drop-in, links for wantedBy).
{ lib }:
let
  inherit (lib) mkOption types;

  words = mkOption {
    type = types.listOf types.str;
    default = [ ];
  };
  section = mkOption {
    type = types.attrsOf types.json;
    default = { };
  };
  units =
    more:
    mkOption {
      default = { };
      type = types.attrsOf (
        types.submodule {
          options = {
            after = words;
            before = words;
            requires = words;
            wantedBy = words;
            unitConfig = section;
          }
          // more;
        }
      );
    };
  server = port: {
    enable = lib.mkEnableOption "it";
    port = mkOption {
      type = types.port;
      default = port;
    };
  };
  engine.enable = lib.mkEnableOption "it";

  lines =
    set:
    lib.concatMapStrings (
      name:
      let
        value = set.${name};
        text = v: if v == true then "true" else if v == false then "false" else toString v;
      in
      lib.concatMapStrings (v: "${name}=${text v}\n") (if builtins.isList value then value else [ value ])
    ) (lib.attrNames set);
  list = name: value: lib.optionalString (value != [ ]) "${name}=${toString value}\n";

  unit = u: ''
    [Unit]
    ${list "After" u.after}${list "Before" u.before}${list "Requires" u.requires}${lines u.unitConfig}'';
  service = u: ''
    ${unit u}
    [Service]
    Environment="PATH=/run/current-system/sw/bin"
    ${lib.optionalString (!u.restartIfChanged) "X-RestartIfChanged=false\n"}${lines u.serviceConfig}'';
in
{
  options = {
    assertions = mkOption {
      type = types.listOf types.json;
      default = [ ];
    };
    environment = {
      systemPackages = mkOption {
        type = types.listOf types.package;
        default = [ ];
      };
      etc = mkOption {
        default = { };
        type = types.attrsOf (types.submodule { options.source = mkOption { type = types.path; }; });
      };
    };
    systemd = {
      packages = mkOption {
        type = types.listOf types.package;
        default = [ ];
      };
      services = units {
        restartIfChanged = mkOption {
          type = types.bool;
          default = true;
        };
        serviceConfig = section;
      };
      targets = units { };
      timers = units { timerConfig = section; };
    };
    virtualisation = {
      docker = engine;
      podman = engine;
      oci-containers = {
        backend = mkOption {
          type = types.str;
          default = "podman";
        };
        containers = mkOption {
          default = { };
          type = types.attrsOf (types.submodule { freeformType = types.json; });
        };
      };
    };
    services = {
      llama-cpp = server 8080;
      ollama = server 11434;
      open-webui = server 8080;
    };
  };

  # A folder with etc/systemd/system, etc/systemd/user and the rest of /etc.
  etc =
    { config, pkgs }:
    let
      inherit (config) systemd;
      texts =
        lib.mapAttrs' (name: u: lib.nameValuePair "${name}.service" (service u)) systemd.services
        // lib.mapAttrs' (name: u: lib.nameValuePair "${name}.target" (unit u)) systemd.targets
        // lib.mapAttrs' (
          name: u: lib.nameValuePair "${name}.timer" "${unit u}\n[Timer]\n${lines u.timerConfig}"
        ) systemd.timers;
      wants =
        lib.mapAttrsToList (name: u: { inherit name; to = u.wantedBy; }) (
          lib.mapAttrs' (name: lib.nameValuePair "${name}.service") systemd.services
          // lib.mapAttrs' (name: lib.nameValuePair "${name}.target") systemd.targets
          // lib.mapAttrs' (name: lib.nameValuePair "${name}.timer") systemd.timers
        );
      failed = lib.filter (one: !one.assertion) config.assertions;
    in
    if failed != [ ] then
      throw "Failed assertions:\n${lib.concatMapStrings (one: "- ${one.message}\n") failed}"
    else
      pkgs.runCommand "etc" { } ''
        for type in system user; do
          mkdir -p $out/systemd/$type
          for package in ${toString systemd.packages}; do
            for file in $package/lib/systemd/$type/*; do
              if [ -d $file ]; then
                mkdir -p $out/systemd/$type/$(basename $file)
                ln -s $file/* $out/systemd/$type/$(basename $file)
              elif [ -e $file ]; then
                ln -s $file $out/systemd/$type/
              fi
            done
          done
        done
        cd $out/systemd/system
        ${lib.concatMapStrings (name: ''
          text=${builtins.toFile "unit" (builtins.unsafeDiscardStringContext texts.${name})}
          if [ -e '${name}' ]; then
            mkdir -p '${name}.d'
            ln -s $text '${name}.d/overrides.conf'
          else
            ln -s $text '${name}'
          fi
        '') (lib.attrNames texts)}
        ${lib.concatMapStrings (
          one:
          lib.concatMapStrings (target: ''
            mkdir -p '${target}.wants'
            ln -s '../${one.name}' '${target}.wants/'
          '') one.to
        ) wants}
        ${lib.concatMapStrings (path: ''
          mkdir -p $out/$(dirname '${path}')
          ln -s ${config.environment.etc.${path}.source} $out/'${path}'
        '') (lib.attrNames config.environment.etc)}
      '';
}
