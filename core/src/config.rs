//! Configuration: one YAML file, with overrides from the environment. Unknown keys are refused.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Why a configuration was refused: names the key, or the place in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Parses `yaml`, lays over it the variables of `environment` that begin with `prefix`, and checks the result.
///
/// `PREFIX` + `DATABASE__URL=x` sets `database.url`. A variable's value is taken as text where the key wants text, and
/// is read as YAML elsewhere: `16` can be a number and `12` the name of a node.
///
/// # Errors
/// When the YAML or an override cannot be read, or the whole does not fit `T`; the message names the key.
pub fn load<T: DeserializeOwned>(
    yaml: &str,
    prefix: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let mut root: Value = parse(yaml).map_err(ConfigError)?;
    if root.is_null() {
        root = Value::Object(Map::new());
    }
    // Keys whose variable still stands as text, with the variable's name.
    let mut texts = BTreeMap::new();
    for (variable, value) in environment {
        let Some(key) = variable.strip_prefix(prefix) else { continue };
        let key = key.to_ascii_lowercase().replace("__", ".");
        set(&mut root, &key, Value::String(value))
            .ok_or_else(|| ConfigError(format!("{variable}: {key:?} lies below a key that is not a map")))?;
        texts.insert(key, variable);
    }
    let variables = texts.clone();
    loop {
        let error = match serde_path_to_error::deserialize(root.clone()) {
            Ok(config) => return Ok(config),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let Some(variable) = texts.remove(&path) else {
            return Err(refusal(&path, variables.get(&path), &error.into_inner()));
        };
        let text =
            root.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str).unwrap_or_default();
        let value = parse(text).map_err(|reason| ConfigError(format!("{variable}: {reason}")))?;
        if value.is_string() {
            return Err(refusal(&path, Some(&variable), &error.into_inner()));
        }
        set(&mut root, &path, value);
    }
}

fn parse(yaml: &str) -> Result<Value, String> {
    // As YAML 1.2 has it: without this `no` and `n` would be booleans, and no node could have such a name.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(yaml, options)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

fn refusal(path: &str, variable: Option<&String>, reason: &serde_json::Error) -> ConfigError {
    let source = variable.map(|variable| format!(" (set by {variable})")).unwrap_or_default();
    ConfigError(if path == "." { reason.to_string() } else { format!("{path}: {reason}{source}") })
}

fn set(root: &mut Value, key: &str, value: Value) -> Option<()> {
    let mut node = root;
    for part in key.split('.') {
        node = node.as_object_mut()?.entry(part).or_insert_with(|| Value::Object(Map::new()));
    }
    *node = value;
    Some(())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        listen: String,
        database: Database,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Database {
        url: String,
        #[serde(default)]
        max_connections: u32,
    }

    fn load_sample(yaml: &str, variables: &[(&str, &str)]) -> Result<Sample, String> {
        let environment = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        load(yaml, "KEYFOLD_SERVER__", environment).map_err(|error| error.to_string())
    }

    const YAML: &str = "listen: 127.0.0.1:1\ndatabase: {url: a}\n";

    #[test]
    fn the_environment_overrides_the_file() {
        let sample = load_sample(
            YAML,
            &[
                ("KEYFOLD_SERVER__DATABASE__MAX_CONNECTIONS", "7"),
                ("KEYFOLD_SERVER", "ignored"),
                ("PATH", "/"),
            ],
        )
        .unwrap();
        assert_eq!(sample.database, Database { url: "a".into(), max_connections: 7 });
    }

    #[test]
    fn the_environment_can_give_what_the_file_leaves_out() {
        let sample =
            load_sample("listen: x", &[("KEYFOLD_SERVER__DATABASE__URL", "postgres://h/d")]).unwrap();
        assert_eq!(sample.database.url, "postgres://h/d");
    }

    #[test]
    fn text_stays_text_however_it_looks() {
        for text in ["12", "no", "n", "1e3", "null", "a: b"] {
            let sample = load_sample(YAML, &[("KEYFOLD_SERVER__LISTEN", text)]).unwrap();
            assert_eq!(sample.listen, text);
        }
        assert_eq!(load_sample("listen: no\ndatabase: {url: n}", &[]).unwrap().listen, "no");
    }

    #[test]
    fn a_wrong_key_is_refused_by_name() {
        let typo = load_sample("listen: x\ndatabase: {url: a, max_conections: 3}", &[]).unwrap_err();
        assert!(typo.starts_with("database.max_conections: unknown field `max_conections`"), "{typo}");
        let variable = load_sample(YAML, &[("KEYFOLD_SERVER__LISTN", "x")]).unwrap_err();
        assert!(variable.starts_with("listn: unknown field"), "{variable}");
        assert!(variable.ends_with("(set by KEYFOLD_SERVER__LISTN)"), "{variable}");
        let number = load_sample(YAML, &[("KEYFOLD_SERVER__LISTN", "1")]).unwrap_err();
        assert!(number.ends_with("(set by KEYFOLD_SERVER__LISTN)"), "{number}");
        let number = load_sample("listen: x\ndatabase: {url: a, max_connections: many}", &[]).unwrap_err();
        assert!(number.starts_with("database.max_connections: invalid type"), "{number}");
        let many = load_sample(YAML, &[("KEYFOLD_SERVER__DATABASE__MAX_CONNECTIONS", "many")]).unwrap_err();
        assert!(many.starts_with("database.max_connections: invalid type"), "{many}");
        assert!(load_sample("listen: [", &[]).is_err());
        assert!(load_sample("listen: x\nlisten: y\ndatabase: {url: a}", &[]).is_err(), "duplicate key");
    }
}
