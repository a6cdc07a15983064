use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::identity::{NamedUid, WorkloadIdentity};

fn named(name: &str) -> NamedUid {
    NamedUid { name: name.to_owned(), uid: format!("uid-of-{name}") }
}

fn identity(namespace: &str, service_account: &str) -> WorkloadIdentity {
    WorkloadIdentity {
        issuer: "prod".try_into().unwrap(),
        subject: format!("system:serviceaccount:{namespace}:{service_account}"),
        namespace: namespace.to_owned(),
        service_account: named(service_account),
        pod: named("api-0"),
        node: Some(named("node-1")),
        credential_id: None,
        expires_at: datetime!(2026-01-05 10:30:00.5 +1),
    }
}

/// A Monday, 09:05 in UTC.
fn input() -> ConditionInput {
    let paths = [crate::path::SecretPath::parse("payments/db").unwrap()];
    let driver = identity("keyfold-system", "keyfold-csi");
    ConditionInput::new(
        &identity("payments", "api"),
        &driver,
        &"payments-api".try_into().unwrap(),
        &paths,
        Some([192, 0, 2, 7].into()),
        datetime!(2026-01-05 10:05:59.9 +1),
    )
}

fn refusal(rego: &str) -> String {
    match Condition::compile(&format!("package keyfold\n{rego}")) {
        Ok(_) => panic!("compiled: {rego}"),
        Err(error) => error.to_string(),
    }
}

fn decided(rego: &str) -> Result<(), ConditionFailure> {
    let condition = Condition::compile(&format!("package keyfold\n{rego}"));
    condition.unwrap_or_else(|error| panic!("{error}: {rego}")).check(&input())
}

/// Decides `allow if { BODY }`.
fn body(body: &str) -> Result<(), ConditionFailure> {
    decided(&format!("allow if {{ {body} }}"))
}

#[test]
fn a_condition_sees_caller_driver_request_and_time() {
    let json = serde_json::to_value(input()).unwrap();
    let expected = serde_json::json!({
        "caller": {
            "issuer": "prod",
            "namespace": "payments",
            "service_account": {"name": "api", "uid": "uid-of-api"},
            "pod": {"name": "api-0", "uid": "uid-of-api-0"},
            "node": {"name": "node-1", "uid": "uid-of-node-1"},
            "token_expires_at": "2026-01-05T09:30:00Z",
        },
        "driver": {
            "issuer": "prod",
            "namespace": "keyfold-system",
            "service_account": {"name": "keyfold-csi", "uid": "uid-of-keyfold-csi"},
            "pod": {"name": "api-0", "uid": "uid-of-api-0"},
            "node": {"name": "node-1", "uid": "uid-of-node-1"},
            "token_expires_at": "2026-01-05T09:30:00Z",
        },
        "request": {"role": "payments-api", "paths": ["payments/db"], "from": "192.0.2.7"},
        "time": {
            "unix_secs": 1_767_603_959_u64,
            "rfc3339": "2026-01-05T09:05:59Z",
            "weekday": "monday",
            "hour": 9,
            "minute": 5,
        },
    });
    assert_eq!(json, expected);
}

#[test]
fn only_the_boolean_true_is_allowed() {
    assert_eq!(decided("allow := true"), Ok(()));
    assert_eq!(decided("default allow := false\nallow if input.caller.namespace == \"payments\""), Ok(()));
    for refused in
        ["allow := false", "allow if input.nothing", "allow if false", "allow := input.nothing.at.all"]
    {
        assert_eq!(decided(refused), Err(ConditionFailure::False), "{refused}");
    }
    for not_boolean in
        ["allow := 1", "allow := \"true\"", "allow := [true]", "allow := {\"a\": true}", "allow := null"]
    {
        let failure = decided(not_boolean).unwrap_err();
        assert_eq!(failure.code(), "condition-error", "{not_boolean}");
    }
}

#[test]
fn known_conditions_give_known_answers() {
    let allowed = [
        "input.time.weekday in {\"monday\", \"tuesday\"}; input.time.hour >= 9; input.time.hour < 18",
        "every path in input.request.paths { startswith(path, concat(\"\", [input.caller.namespace, \"/\"])) }",
        "regex.match(`^api-\\d+$`, input.caller.pod.name)",
        "regex.match(\"^(?i)API\", input.caller.pod.name)",
        "net.cidr_contains(\"192.0.2.0/24\", input.request.from)",
        "not net.cidr_contains(\"2001:db8::/32\", input.request.from)",
        "net.cidr_contains(\"10.0.0.0/8\", \"10.1.0.0/16\")",
        "input.caller.node.name == input.driver.node.name",
        "input.time.rfc3339 < input.caller.token_expires_at",
        "count([path | some path in input.request.paths; endswith(path, \"/db\")]) == 1",
        "object.get(input.caller, [\"pod\", \"uid\"], \"\") != \"\"",
        "concat(\"-\", {\"b\", \"a\"}) == \"a-b\"; concat(\"\", []) == \"\"",
        "some i, path in input.request.paths; i == 0; split(path, \"/\")[0] == \"payments\"",
        "input.time.unix_secs == 1767603959",
    ];
    for rego in allowed {
        assert_eq!(body(rego), Ok(()), "{rego}");
    }
    let refused = [
        "input.time.hour >= 18",
        "input.caller.namespace == input.driver.namespace",
        "regex.match(`^api$`, input.caller.pod.name)",
        "net.cidr_contains(\"192.0.2.0/30\", input.request.from)",
    ];
    for rego in refused {
        assert_eq!(body(rego), Err(ConditionFailure::False), "{rego}");
    }
    let helpers = "import rego.v1\nown(path) if startswith(path, prefix)\nprefix := \"payments/\"\n\
                   late if input.time.hour >= 18\nallow if { not late; every path in input.request.paths { own(path) } }";
    assert_eq!(decided(helpers), Ok(()));
}

#[test]
fn an_error_refuses_wherever_it_stands() {
    let failing = "startswith(input.time.hour, \"1\")";
    for rego in [
        format!("allow if {failing}"),
        format!("allow if not {failing}"),
        format!("allow if true\nallow if {failing}"),
        format!("allow if {failing}\nallow if true"),
        format!("default allow := true\nallow := false if {failing}"),
        format!("f(x) if {failing}\nallow if not f(1)"),
        format!("f(x) if {failing}\nf(x) if true\nallow if f(1)"),
        format!("allow if count([x | some x in [1]; {failing}]) == 0"),
        "allow if not 1 / (input.time.hour - 9) == 1".to_owned(),
        "allow if not net.cidr_contains(\"192.0.2.0/33\", input.request.from)".to_owned(),
        "allow if not concat(\"\", input.request) == \"\"".to_owned(),
        "allow := true if true\nallow := false if true".to_owned(),
    ] {
        let failure = decided(&rego).expect_err(&rego);
        assert_eq!(failure.code(), "condition-error", "{rego}: {failure}");
    }
    let failure = decided(&format!("allow if {{\n  {failing}\n}}")).unwrap_err();
    assert!(failure.to_string().starts_with("line 3: "), "{failure}");
}

#[test]
fn what_is_no_condition_is_refused_with_line_and_reason() {
    for (rego, expected) in [
        ("allow if {", "line "),
        ("allow if input.caller.namespace = = 1", "line 2: "),
        ("x := 1", "no rule `allow`"),
        ("default allow := true", "no rule `allow`"),
        ("allow contains 1 if true", "line 2: allow must be true or false"),
        ("allow(x) if x", "line 2: allow must be true or false"),
        ("allow.a if true", "line 2: a rule has a plain name"),
        ("allow if data.keyfold.x", "line 2: a condition has no data"),
        ("allow if data[\"x\"]", "line 2: a condition has no data"),
        ("import data.other\nallow if other.x", "line 2: a condition imports nothing but rego.v1"),
        ("import input.caller as c\nallow if c", "line 2: a condition imports nothing"),
        ("x if input.a\nallow if x with input as {\"a\": 1}", "line 3: a condition does not use `with`"),
        (
            "allow if regex.match(input.caller.namespace, \"a\")",
            "line 2: the pattern of regex.match must be a literal",
        ),
        ("allow if regex.match(\"(\", \"a\")", "line 2: the pattern is wrong: error: unclosed group"),
        ("allow if regex.match(`(a{1000}){1000}`, \"a\")", "line 2: the pattern is too large"),
        ("allow if startswiht(\"a\", \"b\")", "line 2: startswiht is not a function that conditions have"),
        ("f(x) := f(x)\nallow if f(1)", "rule f uses itself"),
        ("a if b\nb if c\nc if a\nallow if a", "uses itself"),
        ("allow if not allow", "rule allow uses itself"),
        ("allow if 1e999999999 > 1", "line 2: a number has at most 20 digits, and no exponent"),
        ("allow if x", "line 2: "),
    ] {
        let text = refusal(rego);
        assert!(text.contains(expected), "{rego}: {text}");
    }
    for (rego, expected) in [
        ("package other\nallow := true", "the package must be keyfold"),
        ("package keyfold.sub\nallow := true", "the package must be keyfold"),
        ("allow := true", "line 1: "),
        ("", "line 1: "),
    ] {
        let text = Condition::compile(rego).err().expect(rego).to_string();
        assert!(text.contains(expected), "{rego}: {text}");
    }
}

#[test]
fn a_reason_is_one_bounded_line_that_steers_no_terminal() {
    let long = format!("allow if {{ \u{1b}[31m{} }}", "x".repeat(900));
    for rego in [long.as_str(), "allow if { \"\u{1b}[2J\" }", "allow if \u{7f}"] {
        let text = refusal(rego);
        assert!(text.len() < 300 && !text.chars().any(char::is_control), "{text:?}");
    }
}

#[test]
fn attack_23_what_reads_the_machine_or_the_network_is_no_function_of_conditions() {
    for call in [
        "http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1/\"})",
        "opa.runtime()",
        "time.now_ns()",
        "rand.intn(\"x\", 10)",
        "uuid.rfc4122(\"x\")",
        "print(input)",
        "trace(\"x\")",
        "net.lookup_ip_addr(\"localhost\")",
        "net.cidr_expand(\"10.0.0.0/8\")",
        "io.jwt.decode(\"x\")",
        "crypto.sha256(\"x\")",
        "test.sleep(\"1s\")",
        "numbers.range(1, 1000000000)",
        "numbers.range_step(1, 1000000000, 1)",
        "bits.lsh(1, 1000000000000)",
        "sprintf(\"%1000000000d\", [1])",
        "replace(\"a\", \"a\", \"aa\")",
        "strings.replace_n({\"a\": \"aa\"}, \"a\")",
        "json.marshal(input)",
        "walk(input)",
        "array.concat([1], [2])",
        "to_number(\"1e999999999\")",
        "regex.replace(\"a\", \"a\", \"aa\")",
        "data.keyfold.f(1)",
        "input.f(1)",
    ] {
        for rego in [format!("allow if {call}"), format!("allow if {{ x := [{call} | true]; x }}")] {
            let text = refusal(&rego);
            let expected = ["is not a function that conditions have", "a condition has no data"];
            assert!(expected.iter().any(|expected| text.contains(expected)), "{rego}: {text}");
        }
    }
}

/// A name that the engine does not know would only fail when it is called.
#[test]
fn every_listed_function_can_be_called() {
    let mut called = Vec::new();
    for (call, result) in [
        ("abs(-1)", "1"),
        ("ceil(1.5)", "2"),
        ("concat(\"/\", [\"a\", \"b\"])", "\"a/b\""),
        ("contains(\"ab\", \"b\")", "true"),
        ("count([1])", "1"),
        ("endswith(\"ab\", \"b\")", "true"),
        ("floor(1.5)", "1"),
        ("indexof(\"ab\", \"b\")", "1"),
        ("is_array([])", "true"),
        ("is_boolean(true)", "true"),
        ("is_null(null)", "true"),
        ("is_number(1)", "true"),
        ("is_object({})", "true"),
        ("is_set({1})", "true"),
        ("is_string(\"\")", "true"),
        ("lower(\"A\")", "\"a\""),
        ("max([1, 2])", "2"),
        ("min([1, 2])", "1"),
        ("net.cidr_contains(\"10.0.0.0/8\", \"10.1.2.3\")", "true"),
        ("object.get({}, \"a\", 1)", "1"),
        ("object.keys({\"a\": 1})", "{\"a\"}"),
        ("regex.match(\"^a\", \"ab\")", "true"),
        ("round(1.4)", "1"),
        ("sort([2, 1])", "[1, 2]"),
        ("split(\"a/b\", \"/\")", "[\"a\", \"b\"]"),
        ("startswith(\"ab\", \"a\")", "true"),
        ("strings.count(\"aa\", \"a\")", "2"),
        ("strings.reverse(\"ab\")", "\"ba\""),
        ("substring(\"abc\", 1, 1)", "\"b\""),
        ("sum([1, 2])", "3"),
        ("trim(\"xax\", \"x\")", "\"a\""),
        ("trim_left(\"xax\", \"x\")", "\"ax\""),
        ("trim_prefix(\"xa\", \"x\")", "\"a\""),
        ("trim_right(\"xax\", \"x\")", "\"xa\""),
        ("trim_space(\" a \")", "\"a\""),
        ("trim_suffix(\"ax\", \"x\")", "\"a\""),
        ("type_name(1)", "\"number\""),
        ("upper(\"a\")", "\"A\""),
    ] {
        assert_eq!(body(&format!("{call} == {result}")), Ok(()), "{call}");
        called.push(call.split('(').next().unwrap());
    }
    assert_eq!(called, builtins::FUNCTIONS.map(|(name, ..)| name));
}

#[test]
fn values_are_flat() {
    const NESTED: &str = "an element of a list, set or object is a string";
    for (rego, expected) in [
        ("allow if { a := [input.caller.namespace]; b := [a, a]; b }", NESTED),
        ("allow if { a := [x | some x in [1]]; count({a}) == 1 }", NESTED),
        ("allow if count([input.caller]) == 1", NESTED),
        ("allow if count([input.request.paths | true]) == 1", NESTED),
        ("allow if count({\"a\": input.caller.pod}) == 1", NESTED),
        ("allow if count([split(path, \"/\") | some path in input.request.paths]) == 1", NESTED),
        ("allow if count([{path: 1} | some path in input.request.paths]) == 1", NESTED),
        ("allow if count({[1]: 1}) == 1", NESTED),
        ("allow if count({{1}}) == 1", NESTED),
        ("found contains input.caller.pod if true\nallow if found", NESTED),
        ("paths := input.request.paths\nallow if count([paths]) == 1", NESTED),
        ("allow if count([late]) == 1\nlate := paths\npaths := input.request.paths", NESTED),
        ("allow if f(input.request.paths)\nf(x) if count([x]) == 1", NESTED),
        ("allow if { some part in input.caller; count([part]) == 1 }", NESTED),
        ("allow if { every part in input.caller { count([part]) == 1 } }", NESTED),
        ("allow if { x = input.request.paths; count([x]) == 1 }", NESTED),
        ("allow if { input.request.paths = x; count([x]) == 1 }", NESTED),
        ("allow if { [x, 1] := [[1], 1]; count([x]) == 1 }", NESTED),
        ("allow if { x := object.get(input, \"caller\", 1); count([x]) == 1 }", NESTED),
        ("allow if { x := object.get({}, \"a\", [1]); count([x]) == 1 }", NESTED),
        ("allow if { x := max([[1], [2]]); count([x]) == 1 }", NESTED),
        ("allow if { x := sort(input.request.paths); count([x]) == 1 }", NESTED),
        ("allow if { x := {1} | {2}; count([x]) == 1 }", NESTED),
        ("allow if { x := {1} - {2}; count([x]) == 1 }", NESTED),
        ("default x := [1]\nallow if count([x]) == 1", NESTED),
        ("x := 1 if input.a else := [1]\nallow if count([x]) == 1", NESTED),
        ("f(x) := [x]\nallow if f(1)", "a function gives a string"),
        ("x[y] := 1 if some y in [1]\nallow if x", "a rule has a plain name"),
        ("x.y := 1\nallow if x", "a rule has a plain name"),
        ("allow if { split(\"a\", \"b\", x); x }", "split takes 2 arguments"),
        ("f(x) := 1\nallow if { f(1, y); y }", "f takes 1 arguments"),
    ] {
        let text = refusal(rego);
        assert!(text.starts_with("line ") && text.contains(expected), "{rego}: {text}");
    }
    for rego in [
        "table := {\"payments\": [\"api\", \"web\"], \"other\": []}\n\
         allow if input.caller.service_account.name in table[input.caller.namespace]",
        "allow if { some namespace, accounts in {\"payments\": {\"api\"}}; namespace == input.caller.namespace\n\
         input.caller.service_account.name in accounts }",
        "allow if concat(\"/\", [input.caller.namespace, \"db\"]) in input.request.paths",
        "first(path) := split(path, \"/\")[0]\n\
         allow if {first(path) | some path in input.request.paths} == {input.caller.namespace}",
        "allow if { [keyspace, name] := split(input.request.paths[0], \"/\"); keyspace != name }",
        "allow if { x := [input.caller.pod.name]; y := [z | some z in x]; count(y) == 1 }",
        "found contains path if some path in input.request.paths\nallow if count(found) == 1",
    ] {
        assert_eq!(decided(rego), Ok(()), "{rego}");
    }
}

#[test]
fn a_condition_is_shared_by_threads() {
    let condition = Condition::compile("package keyfold\nallow if input.time.hour == 9").unwrap();
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let condition = condition.clone();
            std::thread::spawn(move || (0..20).all(|_| condition.check(&input()) == Ok(())))
        })
        .collect();
    assert!(workers.into_iter().all(|worker| worker.join().unwrap()));
}

#[test]
fn an_evaluation_leaves_nothing_for_the_next() {
    let condition =
        Condition::compile("package keyfold\nallow if input.caller.namespace == \"payments\"").unwrap();
    let mut other = input();
    other.caller.namespace = "other".to_owned();
    for _ in 0..3 {
        assert_eq!(condition.check(&input()), Ok(()));
        assert_eq!(condition.check(&other), Err(ConditionFailure::False));
    }
}

#[test]
fn attack_16_work_that_does_not_end_is_given_up_and_no_more_is_begun() {
    let slots: Arc<Slots> = Arc::default();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let stuck = slots.run(Duration::from_millis(10), move || wait.recv().is_ok());
    assert_eq!(stuck, Err(Ended::TooLong));
    assert_eq!(slots.run(Duration::from_secs(60), || ()), Err(Ended::Overdue));
    let error = Condition::compile_on(&slots, "package keyfold\nallow := true").err().unwrap();
    assert!(error.is_passing(), "{error}");
    drop(release);
    // The thread ends now; how soon is the system's choice.
    while slots.run(Duration::from_secs(60), || ()).is_err() {
        std::thread::yield_now();
    }
}

/// Work that holds all places, until what is returned is dropped.
fn fill(slots: &Arc<Slots>) -> std::sync::mpsc::Sender<()> {
    let (begun, beginnings) = std::sync::mpsc::channel();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    for _ in 0..sandbox::THREADS_MAX {
        let (slots, begun, wait) = (slots.clone(), begun.clone(), wait.clone());
        std::thread::spawn(move || {
            slots.run(Duration::from_secs(60), move || {
                begun.send(()).unwrap();
                let _ = wait.lock().unwrap().recv();
            })
        });
    }
    beginnings.iter().take(sandbox::THREADS_MAX).for_each(drop);
    release
}

#[test]
fn who_waits_for_a_place_in_vain_tells_nothing_of_the_condition() {
    let mut condition = Condition::compile("package keyfold\nallow := true").unwrap();
    condition.slots = Arc::default();
    let full = fill(&condition.slots);
    assert_eq!(condition.slots.run(Duration::from_millis(10), || ()), Err(Ended::Full));
    assert_eq!(condition.check(&input()), Err(ConditionFailure::Busy));
    drop(full);
    // Nothing is overdue: those who come later wait for their turn, and get it.
    assert_eq!(condition.slots.run(Duration::from_secs(60), || 7), Ok(7));
    assert_eq!(condition.check(&input()), Ok(()));
}

#[test]
fn what_is_declared_compiles_while_others_try_out_texts() {
    let full = fill(sandbox::compiling());
    Condition::compile_stored("package keyfold\nallow := true").unwrap();
    drop(full);
}

#[test]
fn a_text_that_is_no_condition_is_none_later_either() {
    for rego in ["allow := true", "package keyfold\nallow if {", "package keyfold\nallow if data.x"] {
        let error = Condition::compile(rego).err().unwrap();
        assert!(!error.is_passing(), "{error}");
    }
}

#[test]
fn patterns_are_few_and_small_together() {
    let all = |count: usize, tail: &str| {
        let matches = (0..count).map(|n| format!("regex.match(`{n}{tail}`, input.caller.namespace)\n"));
        format!("allow if {{\n{}}}", matches.collect::<String>())
    };
    assert_eq!(decided(&all(32, "-[a-z]+$")), Err(ConditionFailure::False));
    for (rego, expected) in [
        (all(33, "-[a-z]+$"), "line 35: a condition has at most 32 patterns"),
        (all(32, "a{400}"), "the patterns are too large together"),
        (all(1, &"a".repeat(256)), "line 3: a pattern has at most 256 bytes"),
    ] {
        let text = refusal(&rego);
        assert!(text.contains(expected), "{text}");
    }
    // The same pattern again is no other.
    let same = "regex.match(`^a{300}`, input.caller.namespace)\n".repeat(40);
    assert_eq!(decided(&format!("allow if {{\n{same}}}")), Err(ConditionFailure::False));
}

#[test]
fn work_that_panics_gives_no_result() {
    let slots: Arc<Slots> = Arc::default();
    assert_eq!(
        slots.run(Duration::from_secs(60), || assert!(std::env::args().count() == 0)),
        Err(Ended::Died)
    );
    assert_eq!(slots.run(Duration::from_secs(60), || 7), Ok(7));
}

proptest! {
    #[test]
    fn any_text_is_refused_or_compiles(text in "(package keyfold\n)?[ -~\n\u{e9}]{0,200}") {
        let _ = Condition::compile(&text);
    }

    #[test]
    fn tokens_in_any_order_are_refused_or_compile_and_decide(
        tokens in prop::collection::vec(prop::sample::select(vec![
            "allow", "if", "{", "}", "(", ")", "[", "]", "input", ".", "caller", ":=", "==", "not", "some", "x", "in",
            "every", "1", "\"a\"", ",", ";", "\n", "|", "&", "-", "count", "default", "else", ":", "true", "contains",
        ]), 0..40),
    ) {
        if let Ok(condition) = Condition::compile(&format!("package keyfold\nallow if true\n{}", tokens.join(" "))) {
            let _ = condition.check(&input());
        }
    }

    #[test]
    fn a_string_is_compared_as_it_is(name in "[ -~\u{e9}\u{1f600}]{0,60}") {
        let mut input = input();
        input.caller.namespace.clone_from(&name);
        let literal = serde_json::to_string(&name).unwrap();
        let rego = format!("package keyfold\nallow if input.caller.namespace == {literal}");
        prop_assert_eq!(Condition::compile(&rego).unwrap().check(&input), Ok(()));
    }
}
