{
  description = "Orphan reaper and port guardian for Linux hosts that run AI stacks";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      each = nixpkgs.lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ];
      pkgsOf = system: nixpkgs.legacyPackages.${system};
    in
    {
      packages = each (system: {
        default = (pkgsOf system).callPackage ./nix/package.nix { };
      });

      overlays.default = final: _: {
        portreeve = final.callPackage ./nix/package.nix { };
      };

      nixosModules.default = import ./nix/module.nix;

      checks = each (
        system:
        import ./nix/tests { pkgs = pkgsOf system; } // { package = self.packages.${system}.default; }
      );
    };
}
