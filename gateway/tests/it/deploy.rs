//! The files with which it is put into containers: what can be seen without running any.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::support::{components, root};

/// What `docker-compose.yml` may say; anything else is a mistake.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    #[serde(rename = "name")]
    _name: String,
    services: BTreeMap<String, Service>,
    #[serde(default)]
    volumes: BTreeMap<String, Value>,
    #[serde(rename = "x-gateway")]
    _gateway: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    image: String,
    build: Option<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    depends_on: DependsOn,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    volumes: Vec<String>,
    healthcheck: Option<Value>,
    #[serde(rename = "command")]
    _command: Option<Vec<String>>,
    #[serde(rename = "restart")]
    _restart: String,
    stop_grace_period: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DependsOn {
    Names(Vec<String>),
    Conditions(BTreeMap<String, Condition>),
}

impl Default for DependsOn {
    fn default() -> DependsOn {
        DependsOn::Names(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    condition: String,
}

fn file(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn compose() -> Compose {
    let program = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let python = root().join("target/python/bin/python");
    let output = Command::new(python).args(["-c", program]).arg(root().join("docker-compose.yml")).output();
    let output = output.expect("Python runs (run scripts/setup test)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("docker-compose.yml has a form that is known")
}

/// The words of the lines that begin with `word`.
fn lines<'a>(text: &'a str, word: &str) -> Vec<Vec<&'a str>> {
    let lines = text.lines().map(|line| line.trim().trim_end_matches(';'));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|line| line.first() == Some(&word)).collect()
}

#[test]
fn what_docker_compose_yml_names_is_there() {
    let compose = compose();
    let mut named = BTreeSet::new();
    for (name, service) in &compose.services {
        assert!(!service.image.is_empty(), "{name} has no image");
        if let Some(context) = &service.build {
            assert!(root().join(context).join("Dockerfile").is_file(), "{name}: no Dockerfile in {context:?}");
        }
        let names: Vec<&String> = match &service.depends_on {
            DependsOn::Names(names) => names.iter().collect(),
            DependsOn::Conditions(conditions) => {
                for (other, Condition { condition }) in conditions {
                    assert_eq!(condition, "service_healthy", "{name} waits for {other}");
                    assert!(compose.services[other].healthcheck.is_some(), "{other} has no health check");
                }
                conditions.keys().collect()
            }
        };
        for other in names {
            assert!(compose.services.contains_key(other), "{name} depends on {other:?}");
        }
        for volume in &service.volumes {
            let (from, _) = volume.split_once(':').expect("a volume is FROM:TO");
            match from.starts_with('.') {
                true => assert!(root().join(from).is_file(), "{name} mounts {from:?}, which is no file here"),
                false => assert!(compose.volumes.contains_key(from), "{name} mounts {from:?}, which is not declared"),
            }
            named.insert(from.to_owned());
        }
    }
    assert!(compose.volumes.keys().all(|volume| named.contains(volume)), "a declared volume is not used");
    assert!(named.contains("./examples/deploy/nginx.conf"));
}

#[test]
fn the_balancer_of_docker_compose_yml_finds_the_gateways() {
    let (compose, nginx, dockerfile) = (compose(), file("examples/deploy/nginx.conf"), file("Dockerfile"));
    let expose = lines(&dockerfile, "EXPOSE");
    let gateways: Vec<_> = compose.services.iter().filter(|(_, service)| service.build.is_some()).collect();
    let behind: Vec<_> =
        lines(&nginx, "server").into_iter().filter(|line| line[1] != "{").map(|line| line[1]).collect();
    let expected: Vec<_> = gateways.iter().map(|(name, _)| format!("{name}:{}", expose[0][1])).collect();
    assert_eq!(behind, expected);
    assert!(behind.len() >= 2, "one node is no cluster");
    let listen = lines(&nginx, "listen")[0][1];
    let published: Vec<_> = compose.services.values().flat_map(|service| &service.ports).collect();
    assert_eq!(published, [&format!("8080:{listen}")], "the balancer alone is published");
}

#[test]
fn the_gateways_of_docker_compose_yml_have_settings_that_hold() {
    components();
    for service in compose().services.values().filter(|service| service.build.is_some()) {
        // The tenants are those of the image, which has the repository's layout.
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.arg("check").current_dir(root()).env_clear().env("POSTERN_TENANTS", "examples/tenants");
        let output = command.envs(&service.environment).output().expect("postern runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let known = Command::new(env!("CARGO_BIN_EXE_postern")).args(["serve", "--help"]).output().expect("it runs");
        let known = String::from_utf8_lossy(&known.stdout).into_owned();
        for variable in service.environment.keys() {
            assert!(known.contains(variable.as_str()), "no setting is read from {variable}");
        }
        assert_eq!(service.stop_grace_period.as_deref(), Some("15s"), "longer than shutdown_grace_ms");
    }
}

#[test]
fn what_the_dockerfile_copies_is_there() {
    let dockerfile = file("Dockerfile");
    let ignored = file(".dockerignore");
    let copied: Vec<_> = lines(&dockerfile, "COPY").into_iter().filter(|line| !line[1].starts_with("--from")).collect();
    assert!(!copied.is_empty());
    for line in copied {
        for source in &line[1..line.len() - 1] {
            assert!(root().join(source).exists(), "COPY {source}");
            assert!(!ignored.lines().any(|line| line == *source), "{source} is copied and ignored");
        }
    }
    let rust = file("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ").map(str::to_owned));
    assert!(dockerfile.contains(&format!("FROM rust:{}-", rust.unwrap().trim_matches('"'))), "another Rust than ours");
}

#[test]
fn docker_compose_itself_accepts_it_where_it_is_installed() {
    let compose = |args: &[&str]| Command::new("docker").arg("compose").args(args).current_dir(root()).output();
    // Where there is none, the tests above are all that can be said.
    if compose(&["version"]).is_ok_and(|output| output.status.success()) {
        let output = compose(&["config", "--quiet"]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
