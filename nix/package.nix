# The program, and the tree of packaging/usr with the store's paths in it.
{
  lib,
  rustPlatform,
  systemd,
}:

rustPlatform.buildRustPackage {
  pname = "portreeve";
  version = (lib.importTOML ../Cargo.toml).package.version;

  src = lib.fileset.toSource {
    root = ../.;
    # 'benches' and 'tests' because Cargo.toml names programs there; 'config' is built in.
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../benches
      ../config
      ../docs
      ../packaging
      ../src
      ../tests
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  # They want engines, logins and a systemd of their own: tests/run.
  doCheck = false;

  # Nothing but paths is changed: tests/nix.rs compares each file with the one in packaging/.
  postInstall = ''
    cp -r packaging/usr/lib packaging/usr/share $out/
    chmod -R u+w $out/lib $out/share
    cp docs/*.md $out/share/doc/portreeve/
    find $out/lib $out/share/man $out/share/doc/portreeve/examples -type f -exec sed -i \
      -e "s|/usr/bin/portreeve|$out/bin/portreeve|g" \
      -e "s|/usr/bin/systemctl|${systemd}/bin/systemctl|g" \
      -e "s|/usr/share/doc|$out/share/doc|g" {} +
  '';

  meta = {
    description = "Orphan reaper and port guardian for Linux hosts that run AI stacks";
    license = with lib.licenses; [
      mit
      asl20
    ];
    platforms = lib.platforms.linux;
    mainProgram = "portreeve";
  };
}
