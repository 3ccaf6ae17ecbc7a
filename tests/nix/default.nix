# A system of NixOS, as far as tests/nix.rs wants to see one: nix/module.nix with the settings of `modules`, a list of files or of
# modules. The package's own recipe runs, but for cargo: /portreeve in the build's sandbox is the program.
{ modules }:
let
  lib = import ./lib.nix;
  nixos = import ./nixos.nix { inherit lib; };

  derive =
    attributes: script:
    derivation (
      attributes
      // {
        system = builtins.currentSystem;
        builder = "/bin/bash";
        args = [
          "-euc"
          "${script}\nexit"
        ];
        PATH = "/usr/bin:/bin";
      }
    );

  pkgs = {
    runCommand = name: attributes: derive (attributes // { inherit name; });
    # nixpkgs writes it in several lines, with jq.
    formats.json =
      { }:
      {
        type = lib.types.json;
        generate =
          name: value:
          derive {
            inherit name;
            json = builtins.toJSON value;
            passAsFile = [ "json" ];
          } "cp $jsonPath $out";
      };
    callPackage =
      file: arguments:
      let
        recipe = import file;
      in
      recipe (builtins.intersectAttrs (builtins.functionArgs recipe) (pkgs // { inherit lib; }) // arguments);
    llama-cpp = derive { name = "llama-cpp"; } "mkdir -p $out";
    # A box's.
    systemd = derive { name = "systemd"; } "mkdir -p $out/bin; ln -s /usr/bin/systemctl $out/bin/";
    rustPlatform.buildRustPackage =
      recipe:
      derive
        {
          name = "${recipe.pname}-${recipe.version}";
          inherit (recipe) src;
        }
        ''
          mkdir -p $out/bin
          cp /portreeve $out/bin/
          cd $src
          ${recipe.postInstall}
        ''
      // {
        inherit (recipe) meta;
      };
  };

  config = lib.evalModules {
    modules = [
      { inherit (nixos) options; }
      ../../nix/module.nix
    ]
    ++ modules;
    arguments = { inherit lib pkgs; };
  };
in
{
  inherit config;
  package = config.services.portreeve.package;
  systemctl = pkgs.systemd;
  etc = nixos.etc { inherit config pkgs; };
}
