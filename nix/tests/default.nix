# Virtual machines of NixOS: `nix build .#checks.x86_64-linux.agent`. Not run where portreeve is built (docs/testing.md).
{ pkgs }:
{
  agent = pkgs.testers.runNixOSTest ./agent.nix;
  models = pkgs.testers.runNixOSTest ./models.nix;
}
