//! Label selectors, with the meaning that Kubernetes gives them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Which labels are wanted; all parts must hold. As Kubernetes' `LabelSelector`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, try_from = "Parts")]
pub struct LabelSelector {
    /// Labels with exactly these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Parts {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<Expression>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    values: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl TryFrom<Parts> for LabelSelector {
    type Error = &'static str;

    /// An empty selector would match everything, which nobody who writes one means.
    fn try_from(parts: Parts) -> Result<Self, &'static str> {
        if parts.match_labels.is_empty() && parts.match_expressions.is_empty() {
            return Err("a selector names at least one label");
        }
        for expression in &parts.match_expressions {
            let wants_values = matches!(expression.operator, Operator::In | Operator::NotIn);
            if wants_values == expression.values.is_empty() {
                return Err("In and NotIn have values, Exists and DoesNotExist have none");
            }
        }
        Ok(Self { match_labels: parts.match_labels, match_expressions: parts.match_expressions })
    }
}

impl LabelSelector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|expression| expression.holds(labels))
    }
}

impl Expression {
    /// As in Kubernetes, `NotIn` also holds for an object without the label.
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(json: &str) -> Result<LabelSelector, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn matches(json: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        selector(json).unwrap().matches(&labels)
    }

    #[test]
    fn all_parts_must_hold() {
        let web = r#"{"matchLabels":{"app":"api"},"matchExpressions":[{"key":"tier","operator":"In","values":["web","edge"]}]}"#;
        assert!(matches(web, &[("app", "api"), ("tier", "edge"), ("other", "x")]));
        assert!(!matches(web, &[("app", "api")]));
        assert!(!matches(web, &[("app", "api"), ("tier", "db")]));
        assert!(!matches(web, &[("tier", "web")]));
    }

    #[test]
    fn each_operator_means_what_it_means_in_kubernetes() {
        let holds = |operator: &str, values: &str, labels| {
            matches(
                &format!(r#"{{"matchExpressions":[{{"key":"a","operator":"{operator}"{values}}}]}}"#),
                labels,
            )
        };
        let values = r#","values":["1"]"#;
        assert!(holds("In", values, &[("a", "1")]) && !holds("In", values, &[("a", "2")]));
        assert!(holds("NotIn", values, &[("a", "2")]) && holds("NotIn", values, &[]));
        assert!(!holds("NotIn", values, &[("a", "1")]));
        assert!(holds("Exists", "", &[("a", "")]) && !holds("Exists", "", &[("b", "1")]));
        assert!(holds("DoesNotExist", "", &[]) && !holds("DoesNotExist", "", &[("a", "1")]));
    }

    #[test]
    fn a_selector_that_says_nothing_or_too_much_is_refused() {
        for bad in [
            "{}",
            r#"{"matchLabels":{}}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"In"}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"Exists","values":["1"]}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]}"#,
            r#"{"matchLabel":{"a":"b"}}"#,
        ] {
            assert!(selector(bad).is_err(), "{bad}");
        }
    }
}
