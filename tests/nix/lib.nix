# As much of nixpkgs' lib and of its module system as nix/ uses, since no nixpkgs is at hand where tests run: options with types,
# mkIf, mkMerge, mkDefault, submodules with freeformType. An option that nobody declares, a value of another type and two values
# for one option are errors, as they are there.
let
  inherit (builtins)
    attrNames
    attrValues
    concatLists
    concatStringsSep
    elem
    filter
    head
    isAttrs
    isBool
    isInt
    isList
    isString
    length
    listToAttrs
    mapAttrs
    map
    ;

  concatMap = builtins.concatMap;
  nameValuePair = name: value: { inherit name value; };
  unique = list: attrNames (listToAttrs (map (name: nameValuePair name null) list));
  isPlain = value: isAttrs value && !(value ? _type) && !(value ? outPath);

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # Brings conditions below the names without looking at them: they may depend on what is being defined.
  push =
    value:
    if (value._type or "") == "merge" then
      concatMap push value.contents
    else if (value._type or "") == "if" then
      map (mapAttrs (_: mkIf value.condition)) (push value.content)
    else
      [ value ];

  discharge =
    value:
    if (value._type or "") == "merge" then
      concatMap discharge value.contents
    else if (value._type or "") == "if" then
      (if value.condition then discharge value.content else [ ])
    else if (value._type or "") == "override" then
      map (d: d // { inherit (value) priority; }) (discharge value.content)
    else
      [
        {
          priority = 100;
          inherit value;
        }
      ];

  # The values of the strongest definitions.
  resolve =
    definitions:
    let
      all = concatMap discharge definitions;
      strongest = builtins.foldl' (p: d: if d.priority < p then d.priority else p) 10000 all;
    in
    map (d: d.value) (filter (d: d.priority == strongest) all);

  typed =
    what: check:
    place: definitions:
    let
      values = resolve definitions;
    in
    if !(builtins.all check values) then
      throw "A definition for option `${place}' is not of type `${what}'."
    else if length (filter (value: value != head values) values) > 0 then
      throw "The option `${place}' has conflicting definition values."
    else
      head values;

  json =
    place: definitions:
    let
      values = resolve definitions;
    in
    if isPlain (head values) then
      byName (_: json) place values
    else if isList (head values) then
      concatLists values
    else
      typed "JSON value" (value: !isAttrs value || value ? outPath) place definitions;

  byName =
    typeOf: place: values:
    let
      definitions = concatMap push values;
      at = name: concatMap (d: if d ? ${name} then [ d.${name} ] else [ ]) definitions;
      names = filter (name: resolve (at name) != [ ]) (unique (concatMap attrNames definitions));
    in
    listToAttrs (map (name: nameValuePair name (typeOf name "${place}.${name}" (at name))) names);

  attrsOf =
    type: place: definitions:
    byName (_: type) place definitions;

  # Options in a tree, and what modules say of them.
  evaluate =
    free: options: place: definitions:
    let
      pushed = concatMap push definitions;
      at = name: concatMap (d: if d ? ${name} then [ d.${name} ] else [ ]) pushed;
      strangers = filter (name: !(options ? ${name})) (concatMap attrNames pushed);
      declared = mapAttrs (
        name: option:
        if (option._type or "") != "option" then
          evaluate null option "${place}${name}." (at name)
        else if resolve (at name) != [ ] then
          option.type "${place}${name}" (at name)
        else
          option.default or (throw "The option `${place}${name}' was accessed but has no value defined.")
      ) options;
    in
    if free != null then
      byName (_: free) place (map (d: removeAttrs d (attrNames options)) pushed) // declared
    else if strangers != [ ] then
      throw "The option `${place}${head strangers}' does not exist."
    else
      declared;

  types = {
    bool = typed "boolean" isBool;
    str = typed "string" isString;
    port = typed "16 bit unsigned integer" (value: isInt value && 0 <= value && value < 65536);
    package = typed "package" (value: value ? outPath);
    path = typed "path" (value: value ? outPath || isString value);
    enum = all: typed "one of ${concatStringsSep ", " all}" (value: elem value all);
    listOf =
      type: place: definitions:
      concatMap (list: map (value: type place [ value ]) list) (resolve definitions);
    inherit attrsOf json;
    submodule =
      {
        options ? { },
        freeformType ? null,
      }:
      place: definitions:
      evaluate freeformType options "${place}." definitions;
  };

  mergeOptions =
    a: b:
    a
    // mapAttrs (
      name: value:
      if a ? ${name} && (value._type or "") != "option" then mergeOptions a.${name} value else value
    ) b;
in
rec {
  inherit
    attrNames
    attrValues
    concatMap
    filter
    listToAttrs
    mapAttrs
    mkIf
    mkOverride
    nameValuePair
    types
    ;
  inherit (builtins) any all;

  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOption = option: option // { _type = "option"; };
  mkEnableOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      description = "Whether to enable ${what}.";
    };
  literalExpression = text: { inherit text; };

  optional = condition: value: if condition then [ value ] else [ ];
  optionals = condition: list: if condition then list else [ ];
  optionalString = condition: text: if condition then text else "";
  concatMapStrings = f: list: concatStringsSep "" (map f list);
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
  escapeShellArg = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";
  removeSuffix =
    suffix: text:
    let
      rest = builtins.stringLength text - builtins.stringLength suffix;
    in
    if rest >= 0 && builtins.substring rest (-1) text == suffix then
      builtins.substring 0 rest text
    else
      text;
  getExe = package: "${package}/bin/${package.meta.mainProgram}";
  importTOML = file: builtins.fromTOML (builtins.readFile file);

  licenses = mapAttrs (name: _: name) {
    mit = 0;
    asl20 = 0;
  };
  platforms.linux = [ builtins.currentSystem ];

  fileset = {
    unions = map toString;
    # All of the listed, and the folders on the way to them.
    toSource =
      { root, fileset }:
      let
        within = folder: path: path == folder || hasPrefix "${folder}/" path;
      in
      builtins.path {
        path = root;
        name = "source";
        filter = path: _: builtins.any (one: within one path || within path one) fileset;
      };
  };
  hasPrefix =
    prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;

  # Modules are functions of { config, lib, pkgs, … } or what these return.
  evalModules =
    { modules, arguments }:
    let
      read = module: if builtins.isPath module then import module else module;
      ask = module: if builtins.isFunction module then module (arguments // { inherit config; }) else module;
      asked = map (module: ask (read module)) modules;
      full = map (module: if module ? options || module ? config then module else { config = module; }) asked;
      options = builtins.foldl' mergeOptions { } (map (module: module.options or { }) full);
      config = evaluate null options "" (map (module: module.config or { }) full);
    in
    config;
}
