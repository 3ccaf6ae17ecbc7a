# A declared model starts at boot in its own sandbox, stays as it is over a switch, and stays down when it was stopped.
{
  name = "portreeve-models";

  nodes.machine =
    { pkgs, ... }:
    let
      # Plays llama.cpp's server; cargo builds it as an example of portreeve.
      played = (pkgs.callPackage ../package.nix { }).overrideAttrs {
        cargoBuildFlags = [
          "--example"
          "model-server"
        ];
        postBuild = ''
          install -D "$(find target -path '*/release/examples/model-server' | head -n 1)" $out/bin/llama-server
        '';
        installPhase = "true";
      };
    in
    {
      imports = [ ../module.nix ];
      environment.etc."model.gguf".text = "weights";
      system.switch.enable = true;

      services.portreeve = {
        enable = true;
        models.small = {
          backend = "llamacpp";
          model = "/etc/model.gguf";
          program = "${played}/bin/llama-server";
          port = 8081;
          autoStart = true;
        };
      };
    };

  testScript = ''
    machine.wait_for_unit("multi-user.target")
    machine.wait_for_unit("portreeve-model-small.service")
    machine.succeed("portreeve model status small | grep running")

    pid = machine.succeed("systemctl show -P MainPID portreeve-model-small").strip()
    machine.succeed("/run/current-system/bin/switch-to-configuration test")
    again = machine.succeed("systemctl show -P MainPID portreeve-model-small").strip()
    assert pid == again, "a switch loads no model anew"

    machine.succeed("portreeve model stop small")
    machine.succeed("/run/current-system/bin/switch-to-configuration test")
    machine.fail("systemctl is-active portreeve-model-small")

    machine.succeed("portreeve model start small")
    machine.shutdown()
  '';
}
