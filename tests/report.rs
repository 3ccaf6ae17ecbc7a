//! What docs/report.md promises to programs that read the report.

use portreeve::{
    judge::{
        port::{PortState, PortVerdict},
        verdict::Unknown,
    },
    pipeline::Findings,
    report::{Style, exit, json, render_findings},
};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/report-v1.json");

fn blind_look(endpoint: &str) -> Findings {
    let unknown =
        Unknown { fact: "the sockets".into(), why: "operation not permitted".into(), remedy: None };
    let port = endpoint.parse().map(|endpoint| PortVerdict {
        endpoint,
        service: Some("aidb".into()),
        state: PortState::Unknown(unknown.clone()),
        sentence: "its sockets could not be read".into(),
        next_step: Some("run as root".into()),
    });
    Findings {
        ports: port.into_iter().collect(),
        gpus: Vec::new(),
        verdicts: Vec::new(),
        unknowns: vec![unknown],
        model_containers: None,
    }
}

#[test]
fn the_published_schema_is_the_one_that_the_code_generates() {
    let generated = format!("{}\n", serde_json::to_string_pretty(&json::schema()).unwrap());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(SCHEMA, &generated).unwrap();
    }
    let published = std::fs::read_to_string(SCHEMA).unwrap_or_default();
    assert_eq!(
        published, generated,
        "BLESS=1 writes {SCHEMA} anew; docs/report.md says what may change"
    );
}

#[test]
fn a_document_fits_the_published_schema_and_carries_the_exit_code() {
    let mut out = Vec::new();
    json::render_findings(&blind_look("127.0.0.1:8091"), true, json::Command::Reap, &mut out)
        .unwrap();
    let document: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let schema = serde_json::from_str(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let errors: Vec<String> = jsonschema::validator_for(&schema)
        .unwrap()
        .iter_errors(&document)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(document["exit_code"], exit::of_findings(&blind_look("127.0.0.1:8091")));
    assert_eq!(document["exit_code"], 2);
}

#[test]
fn the_published_schema_refuses_another_version_and_a_missing_field() {
    let schema = serde_json::from_str(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut out = Vec::new();
    json::render_findings(&blind_look("127.0.0.1:8091"), true, json::Command::Scan, &mut out)
        .unwrap();
    let document: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let mut newer = document.clone();
    newer["version"] = 2.into();
    assert!(!validator.is_valid(&newer));
    for field in document.as_object().unwrap().keys() {
        let mut less = document.clone();
        less.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&less), "{field}");
    }
}

#[test]
fn a_port_that_could_not_be_read_is_not_called_free_to_a_person_either() {
    let mut out = Vec::new();
    render_findings(
        &blind_look("127.0.0.1:8091"),
        Style { width: None, is_coloured: false, shows_evidence: false },
        &mut out,
    )
    .unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(!text.contains("free:"), "{text}");
    assert!(
        text.contains("could not tell: no orphans · 0 of 1 guarded port free, 1 unknown\n"),
        "{text}"
    );
}
