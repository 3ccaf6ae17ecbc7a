use super::{super::fake::*, *};

const SHORT: Duration = Duration::from_millis(600);
/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);
const BOTH: Which = Which { docker: true, docker_socket: None, podman: true };
const DOCKER: &str = "run/docker.sock";
const PODMAN: &str = "run/podman/podman.sock";

fn chosen(
    fake: &Fake,
    which: &Which,
    wanted: Option<EngineKind>,
) -> Result<(EngineRef, Version), NoAnswer> {
    default_for(&fake.host(), which, 0, wanted, SHORT)
        .map(|(engine, version)| (engine.name, version))
}

fn docker(_: &str) -> Act {
    Act::Answer(200, docker_version())
}

fn podman(_: &str) -> Act {
    Act::Answer(200, podman_version())
}

fn roots(kind: EngineKind, version: &str) -> (EngineRef, Version) {
    (EngineRef { kind, owner: 0 }, Version { kind, version: version.to_owned() })
}

#[test]
fn docker_is_taken_where_it_answers_and_podman_where_it_does_not() {
    let both = Fake::at(DOCKER, docker);
    both.listen(PODMAN, podman);
    assert_eq!(chosen(&both, &BOTH, None), Ok(roots(EngineKind::Docker, "20.10.24+dfsg1")));
    assert_eq!(both.connections(), 1, "who need not be asked is not touched");
    assert_eq!(
        chosen(&both, &BOTH, Some(EngineKind::Podman)),
        Ok(roots(EngineKind::Podman, "4.3.1"))
    );
    let only_podman = Which { docker: false, ..BOTH };
    assert_eq!(chosen(&both, &only_podman, None), Ok(roots(EngineKind::Podman, "4.3.1")));
    let podmans = Fake::at(PODMAN, podman);
    assert_eq!(chosen(&podmans, &BOTH, None), Ok(roots(EngineKind::Podman, "4.3.1")));
    // A Docker that hangs leaves Podman its share of the time.
    let hung = Fake::at(DOCKER, |_| Act::Hang);
    hung.listen(PODMAN, podman);
    assert_eq!(chosen(&hung, &BOTH, None), Ok(roots(EngineKind::Podman, "4.3.1")));
}

/// Debian's podman-docker links the one to the other.
#[test]
fn a_podman_at_dockers_place_is_taken_as_podman_and_never_as_docker() {
    let fake = Fake::at(DOCKER, podman);
    assert_eq!(chosen(&fake, &BOTH, None), Ok(roots(EngineKind::Podman, "4.3.1")));
    let why = chosen(&fake, &BOTH, Some(EngineKind::Docker)).unwrap_err().to_string();
    assert_eq!(why, "no engine answers: docker at '/run/docker.sock': podman 4.3.1 answers there");
}

#[test]
fn where_none_answers_all_that_was_tried_is_named() {
    let fake = Fake::at(DOCKER, |_| Act::Hang);
    let why = chosen(&fake, &BOTH, None).unwrap_err().to_string();
    assert_eq!(
        why,
        "no engine answers: docker at '/run/docker.sock': no answer in time; podman at '/run/podman/podman.sock': there is \
         no such engine here"
    );
    let forbidden = Which { podman: false, ..BOTH };
    let why = chosen(&fake, &forbidden, Some(EngineKind::Podman)).unwrap_err().to_string();
    assert_eq!(why, "no engine answers: podman: not to be asked, by the settings");
    let users = default_for(&fake.host(), &BOTH, 4242, None, LONG).unwrap_err().to_string();
    assert!(users.contains("docker of user 4242 at '/run/user/4242/docker.sock'"), "{users}");
}

#[test]
fn the_engine_that_is_returned_is_the_one_that_answered() {
    let fake = Fake::nowhere();
    fake.listen("run/mine.sock", docker);
    let which = Which { docker_socket: Some("/run/mine.sock".into()), ..BOTH };
    let (engine, version) = default_for(&fake.host(), &which, 0, None, LONG).unwrap();
    assert_eq!(super::super::version(&engine, LONG), Ok(version));
    assert_eq!(engine.path(), std::path::Path::new("run/mine.sock"));
}
