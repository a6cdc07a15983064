use super::{super::source::Source, *};

fn all(text: &str) -> Vec<Result<Rc<Node>, Unreadable>> {
    let mut found = Vec::new();
    documents(text, |document| found.push(document));
    found
}

fn one(text: &str) -> Rc<Node> {
    let mut found = all(text);
    assert_eq!(found.len(), 1, "{text}");
    found.remove(0).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

fn refusal(text: &str) -> String {
    let Err(Unreadable { at, reason }) = all(text).remove(0) else { panic!("{text:.60} is taken") };
    format!("{}:{} {reason}", at.line, at.column)
}

fn at(line: usize, column: usize) -> Position {
    Position { line, column }
}

/// The node as text: enough to compare.
fn shown(node: &Node) -> String {
    let list = |parts: Vec<String>| parts.join(", ");
    match &node.value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number => "number".into(),
        Value::Text { text, .. } => format!("{text:?}"),
        Value::List(items) => format!("[{}]", list(items.iter().map(|item| shown(item)).collect())),
        Value::Map(entries) => {
            format!(
                "{{{}}}",
                list(entries.iter().map(|e| format!("{}: {}", e.key, shown(&e.value))).collect())
            )
        }
    }
}

#[test]
fn nodes_know_where_they_stand() {
    let root = one(
        "# comment\nkind: Pod\nspec:\n  volumes:\n    - name: a\n      csi: {driver: d, readOnly: yes}\n",
    );
    assert_eq!(root.entry("spec").unwrap().at, at(3, 1));
    let volume = &root.get(&["spec", "volumes"]).unwrap().items()[0];
    assert_eq!((volume.at, volume.entry("csi").unwrap().at), (at(5, 7), at(6, 7)));
    let read_only = volume.get(&["csi"]).unwrap().entry("readOnly").unwrap();
    assert_eq!((read_only.at, read_only.value.at), (at(6, 24), at(6, 34)));
    assert!(matches!(read_only.value.value, Value::Bool(true)));
}

#[test]
fn scalars_are_what_kubernetes_takes_them_for() {
    let text =
        "[a, '1', 1, 1.5, -2, 0x1F, 1_000, .inf, yes, Off, ~, null, !!str 1, 1.2.3, e3, 1e3, |\n  b\n]";
    let text = text.replace(", |\n  b\n]", "]");
    assert_eq!(
        shown(&one(&text)),
        "[\"a\", \"1\", number, number, number, number, number, number, true, false, null, null, \"1\", \"1.2.3\", \"e3\", number]"
    );
}

#[test]
fn aliases_and_merges_are_followed() {
    let root =
        one("base: &b {x: 1, y: two}\nuse: *b\nmerge:\n  <<: *b\n  y: own\nmany: {<<: [*b, {z: zed}]}\n");
    assert_eq!(shown(root.get(&["use"]).unwrap()), "{x: number, y: \"two\"}");
    assert_eq!(shown(root.get(&["merge"]).unwrap()), "{y: \"own\", x: number}");
    assert_eq!(shown(root.get(&["many"]).unwrap()), "{x: number, y: \"two\", z: \"zed\"}");
    assert_eq!(root.get(&["use", "y"]).unwrap().at, at(1, 20), "where it is written");
}

#[test]
fn a_document_that_is_wrong_hides_no_other() {
    let found = all("a: 1\n---\n---\nb: [1, 2\n---\nc: 3\nc: 4\n---\nd: *none\n---\n? [x]\n: y\n---\ne: 5\n");
    let shown: Vec<_> = found
        .iter()
        .map(|document| match document {
            Ok(root) => shown(root),
            Err(error) => format!("{}: {:.40}", error.at.line, error.reason),
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    {a: number}
    4: not YAML: unclosed bracket '['
    7: the key "c" stands in the map twice
    9: not YAML: while parsing node, found unkn
    11: a key must be text
    {e: number}
    "#);
}

#[test]
fn attack_16_what_grows_or_nests_without_end_is_refused() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(all(&nested(DEPTH_MAX)).iter().filter(|document| document.is_ok()).count(), 1);
    assert_eq!(refusal(&nested(DEPTH_MAX + 1)), "1:129 nested deeper than 128 levels");
    assert_eq!(refusal(&"[".repeat(100_000)), "1:256 not YAML: recursion limit exceeded");
    let steps: String = (0..300).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    assert!(refusal(&steps).contains("nested deeper"));

    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(refusal(&laughs).ends_with("the document is too large with its aliases written out"));
    let long = format!("- &a {}\n{}", "x".repeat(100_000), "- *a\n".repeat(1_000));
    assert!(refusal(&long).ends_with("the document is too large with its aliases written out"));
    let mut merges = String::from("m0: &m0 {a: x}\n");
    for level in 1..20_000 {
        merges.push_str(&format!("m{level}: &m{level} {{<<: *m{}, k{level}: x}}\n", level - 1));
    }
    assert!(all(&merges)[0].is_err());
    let mut chain = String::from("a0: &a0 [x]\n");
    for level in 1..10_000 {
        chain.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(refusal(&chain).contains("nested deeper than 128 levels"));
    assert_eq!(refusal("a: &a [*a]\n"), "1:8 the alias stands inside what it stands for");
}

proptest::proptest! {
    #[test]
    fn reading_never_panics(text in "(- |\\{|\\}|\\[|\\]|a: |b|&x |\\*x|<<: |: |, |\n|  |\\||>|'|\"|---\n|é){0,60}") {
        documents(&text, |document| {
            if let Ok(root) = document {
                let _ = Source::new(&text).within(&root, at(1, 1));
            }
        });
    }
}
