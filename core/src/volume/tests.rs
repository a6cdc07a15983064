use proptest::prelude::*;

use super::*;
use crate::path::SecretPath;

fn parse(context: &[(&str, &str)]) -> Result<Attributes, Vec<Problem>> {
    Attributes::parse(&context.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

fn parse_secrets(yaml: &str) -> Result<Vec<Item>, String> {
    let joined =
        |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    parse(&[(SECRETS, yaml)]).map(|attributes| attributes.items).map_err(joined)
}

#[test]
fn every_item_key_is_understood() {
    let items = parse_secrets(
        "- {path: payments/db, file: conf/db.json, format: json, mode: '0640', uid: 1000, gid: 0, optional: true}",
    )
    .unwrap();
    let expected = Item {
        path: SecretPath::parse("payments/db").unwrap(),
        optional: true,
        format: Format::Json,
        file: FilePath::parse("conf/db.json").unwrap(),
        mode: 0o640,
        uid: Some(1000),
        gid: Some(0),
    };
    assert_eq!(items, [expected]);
}

#[test]
fn default_files_come_from_the_last_segment() {
    let items =
        parse_secrets("- path: a/b/c\n- {path: a/b/c, format: env}\n- {path: a/b/c, format: json}").unwrap();
    let files: Vec<_> = items.iter().map(|item| item.file.to_string()).collect();
    assert_eq!(files, ["c", "c.env", "c.json"]);
    assert_eq!(parse_secrets("- {path: a/b, file: on}").unwrap()[0].file.to_string(), "on");
}

#[test]
fn a_mode_is_octal_with_or_without_quotes() {
    for (text, mode) in [("'0400'", 0o400), ("0440", 0o440), ("'777'", 0o777), ("0000", 0)] {
        assert_eq!(parse_secrets(&format!("- {{path: a/b, mode: {text}}}")).unwrap()[0].mode, mode, "{text}");
    }
}

#[test]
fn bad_attributes_are_refused_with_their_reason() {
    let many = "- path: a/b\n".repeat(65);
    let long = format!("- path: a/b # {}", "x".repeat(70_000));
    let deep_file = format!("- {{path: a/b, file: {}x}}", "a/".repeat(16));
    let long_name = format!("- {{path: a/b, file: {}}}", "n".repeat(300));
    for (yaml, why) in [
        ("", "must be a YAML list"),
        ("[]", "the list is empty"),
        ("path: a/b", "must be a YAML list"),
        ("- [", "not YAML"),
        ("- path: a/b\n- path: a/b", "secrets[0] and secrets[1] both write \"b\""),
        (&many, "65 items"),
        (&long, "longer than 65536 bytes"),
        ("- payments/db", "secrets[0]: must be a map"),
        ("- {}", "secrets[0]: missing field `path`"),
        ("- {path: a/b, fle: x}", "secrets[0]: unknown field `fle`"),
        ("- {path: a/b, path: a/c}", "duplicate"),
        ("- {path: ../b}", "secrets[0]: path"),
        ("- {path: a}", "secrets[0]: path"),
        ("- {path: a/b, file: /etc/passwd}", "it must be relative"),
        ("- {path: a/b, file: ../../etc/passwd}", "begin with '..'"),
        ("- {path: a/b, file: ..data/x}", "begin with '..'"),
        ("- {path: a/b, file: ''}", "empty part"),
        ("- {path: a/b, file: \"a\\0b\"}", "control character"),
        (&long_name, "255 bytes"),
        ("- {path: a/b, format: pkcs12}", "format: \"pkcs12\" is not supported, only raw, env, json"),
        ("- {path: a/b, format: RAW}", "not supported"),
        ("- {path: a/b, mode: '0888'}", "mode"),
        ("- {path: a/b, mode: '4755'}", "mode"),
        ("- {path: a/b, mode: '07'}", "mode"),
        ("- {path: a/b, mode: 400}", "expected a string"),
        ("- {path: a/b, mode: r--r-----}", "mode"),
        ("- {path: a/b, uid: -1}", "expected u32"),
        ("- {path: a/b, gid: 4294967295}", "gid: 4294967295 is not an id"),
        ("- {path: a/b, optional: maybe}", "expected a boolean"),
        (&deep_file, "16 parts"),
        ("- {path: a/b, format: env, file: x}\n- {path: a/c, file: x/y}", "needs a folder"),
        ("- {path: a/b, file: x/y}\n- {path: a/c, format: json, file: x}", "needs a folder"),
    ] {
        let error = parse_secrets(yaml).unwrap_err();
        assert!(error.contains(why), "{yaml:.60}: {error}");
    }
}

#[test]
fn attack_16_a_short_attribute_cannot_become_a_large_one() {
    let mut laughs = String::from("- &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("- &a{level} [{aliases}]\n"));
    }
    let copies = format!("- &a {}\n{}", "x".repeat(41_000), "- *a\n".repeat(1_900));
    let merged = format!("- &a {{path: a/b, file: {}}}\n{}", "x".repeat(200), "- {<<: *a}\n".repeat(60));
    for bomb in [&laughs, &copies, &merged, "- &a {path: a/b}", "- *a"] {
        let error = parse_secrets(bomb).unwrap_err();
        let refused = error
            .starts_with("secrets: YAML anchors (`&name`) and aliases (`*name`) are not supported")
            || error.starts_with("secrets: not YAML");
        assert!(refused && error.len() < 400, "{bomb:.40}: {error}");
    }
    for bomb in ["- x\n".repeat(16_000), format!("- [{}]", "[],".repeat(16_000))] {
        let error = parse_secrets(&bomb).unwrap_err();
        assert_eq!(error, "secrets: too many YAML nodes, at most 64 items are possible", "{bomb:.40}");
    }
    let nested = format!("- {}", "[".repeat(60_000));
    assert!(parse_secrets(&nested).unwrap_err().starts_with("secrets: not YAML"));
}

#[test]
fn an_attribute_of_the_greatest_size_is_taken() {
    let item = |n: usize| {
        format!(
            "- {{path: a/b, file: {}{n:02}, format: raw, mode: '0440', uid: 1, gid: 2, optional: false}}\n",
            format!("{}/", "x".repeat(200)).repeat(4)
        )
    };
    let yaml: String = (0..64).map(item).collect();
    assert!((50_000..=64 * 1024).contains(&yaml.len()), "{}", yaml.len());
    assert_eq!(parse_secrets(&yaml).unwrap().len(), 64);
}

#[test]
fn a_long_key_is_cut_in_its_message() {
    let error =
        parse_secrets(&format!("- {{path: a/b, ? {} : 1}}\n- {{path: A}}", "k".repeat(60_000))).unwrap_err();
    assert!(error.len() < 600 && error.contains("secrets[1]: path \"A\""), "{error}");
}

#[test]
fn a_mistake_names_the_key_that_it_is_about() {
    let keys = |yaml: &str| -> Vec<Option<String>> {
        match parse(&[(SECRETS, yaml)]).unwrap_err().remove(0) {
            Problem::Item { mistakes, .. } => mistakes.into_iter().map(|mistake| mistake.key).collect(),
            other => panic!("{yaml}: {other}"),
        }
    };
    let key = |name: &str| Some(name.to_owned());
    assert_eq!(
        keys("- {path: A, format: x, mode: x, file: /x}"),
        ["path", "format", "mode", "file"].map(key)
    );
    assert_eq!(keys("- {path: a/b, fle: x}"), [key("fle")]);
    assert_eq!(keys("- {path: a/b, uid: -1}"), [key("uid")]);
    assert_eq!(keys("- {file: x}"), [None]);
    assert_eq!(keys("- payments/db"), [None]);
}

#[test]
fn text_that_is_no_yaml_is_refused_with_its_place() {
    for (yaml, line) in [("- path: a/b\n- [\n", 2), ("- path: a/b\n- {path: a/b, path: c/d}\n", 2)] {
        let problems = parse(&[(SECRETS, yaml)]).unwrap_err();
        let Problem::List { at: Some(at), .. } = &problems[0] else { panic!("{problems:?}") };
        assert_eq!((problems.len(), at.line), (1, line), "{yaml}");
    }
}

proptest! {
    #[test]
    fn the_parser_never_panics(yaml in "\\PC{0,200}", role in "\\PC{0,80}", key in "\\PC{0,40}") {
        let _ = parse(&[(SECRETS, &yaml), (ROLE, &role), (&key, "x")]);
    }

    #[test]
    fn nor_on_text_that_looks_like_items(yaml in "(- |\\{|\\}|\\[|\\]|path: |file: |mode: |format: |uid: |a/b|\\.\\./|: |, |\n|&a |\\*a|'|\"|0400|raw|~){0,40}") {
        if let Ok(items) = parse_secrets(&yaml) {
            prop_assert!(!items.is_empty());
        }
    }

    #[test]
    fn attack_24_an_accepted_file_stays_inside_the_volume(file in "[a-c./\\\\%]{0,12}") {
        if let Ok(items) = parse_secrets(&format!("- {{path: a/b, file: '{file}'}}")) {
            let path = items[0].file.to_string();
            prop_assert!(!path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && !part.starts_with("..")));
        }
    }
}
