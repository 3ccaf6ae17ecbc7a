//! Names of users, for display only: `/etc/passwd` (passwd(5)) and nothing else. NSS would run code of others, ask
//! servers and wait for them.

use std::collections::BTreeMap;

use crate::host::Host;

/// Names by uid, the first of each; empty where the file cannot be read.
pub fn names(host: &Host) -> BTreeMap<u32, String> {
    let text = host.read_text("etc/passwd");
    names_in(text.known().map(String::as_str).unwrap_or_default())
}

/// Those in this text.
pub(super) fn names_in(text: &str) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(uid))) = (fields.next(), fields.nth(1).map(str::parse)) {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_uid_counts_and_other_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::fixture(folder.path());
        assert!(names(&host).is_empty());
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        let text = "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\n# nobody\nbad:x:y:\nal:x:7";
        std::fs::write(folder.path().join("etc/passwd"), text).unwrap();
        let expected = [(0, "root".to_owned()), (7, "al".to_owned())];
        assert_eq!(names(&host), expected.into());
    }
}
