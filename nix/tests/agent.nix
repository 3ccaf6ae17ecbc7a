# The gate holds a unit back, the sweep sees in its sandbox who holds what, a switch leaves all as it is.
{
  name = "portreeve-agent";

  nodes.machine =
    { pkgs, ... }:
    let
      server = port: "${pkgs.python3}/bin/python3 -m http.server ${toString port}";
    in
    {
      imports = [ ../module.nix ];
      virtualisation.podman.enable = true;

      services.portreeve = {
        enable = true;
        onShutdown = true;
        settings = {
          defaults = {
            min_age = "1s";
            respawn_watch = "0s";
          };
          gate.timeout = "0s";
          services.held.ports = [ 8501 ];
          services.web = {
            runs_in.unit = "web.service";
            ports = [ 8508 ];
          };
        };
        gates.web = [ "web" ];
      };

      systemd.services.web.serviceConfig.ExecStart = server 8508;
      systemd.services.stranger.serviceConfig.ExecStart = server 8508;
      systemd.services.held.serviceConfig.ExecStart = server 8501;
      system.switch.enable = true;
    };

  testScript = ''
    machine.wait_for_unit("multi-user.target")
    machine.wait_for_unit("portreeve-shutdown.service")
    machine.succeed("portreeve config show | grep 8508")
    machine.succeed("systemctl list-timers --all | grep portreeve-sweep")

    with subtest("the gate holds a unit back while a stranger has its port"):
        machine.succeed("systemctl start stranger")
        machine.wait_for_open_port(8508)
        machine.fail("systemctl start web")
        machine.succeed("journalctl -u portreeve-gate@web | grep stranger.service")
        machine.succeed("systemctl stop stranger")
        machine.succeed("systemctl start web")

    with subtest("the sweep runs in its sandbox, and says what holds the port"):
        machine.succeed("systemctl start held")
        machine.wait_for_open_port(8501)
        machine.execute("systemctl start portreeve-sweep")
        machine.succeed("test -s /var/lib/portreeve/metrics/portreeve.prom")
        machine.succeed("(portreeve scan --format json || true) | grep held.service")

    with subtest("a switch to the same system starts and stops nothing"):
        machine.succeed("/run/current-system/bin/switch-to-configuration test")
        machine.succeed("systemctl is-active portreeve-shutdown.service web.service")

    machine.shutdown()
  '';
}
