//! Conditions written to harm the server: each ends as a refusal, in this process, within its memory. A test binary of
//! its own, since it measures the process.

use std::{fs, net::IpAddr};

use keyfold_core::{
    condition::{Condition, ConditionInput, SOURCE_BYTES_MAX},
    identity::{NamedUid, WorkloadIdentity},
    path::SecretPath,
};
use time::macros::datetime;

/// What all of these may add to the process, in KiB: several times what they did when this was written.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

fn input() -> ConditionInput {
    let named = |name: &str| NamedUid { name: name.to_owned(), uid: "uid".to_owned() };
    let identity = WorkloadIdentity {
        issuer: "prod".try_into().unwrap(),
        subject: "system:serviceaccount:payments:api".to_owned(),
        namespace: "payments".to_owned(),
        service_account: named("api"),
        pod: named("api-0"),
        node: Some(named("node-1")),
        credential_id: None,
        expires_at: datetime!(2026-01-05 10:00 UTC),
    };
    // As many paths as a volume may have, each as long as a path may be.
    let segment = "a".repeat(128);
    let paths: Vec<_> = (10..74)
        .map(|number| SecretPath::parse(&format!("k/{}x/{number}", format!("{segment}/").repeat(5))).unwrap())
        .collect();
    let role = "payments-api".try_into().unwrap();
    ConditionInput::new(
        &identity,
        &identity,
        &role,
        &paths,
        Some(IpAddr::from([192, 0, 2, 1])),
        datetime!(2026-01-05 09:00 UTC),
    )
}

/// Five loops over the paths: a billion rounds.
const ROUNDS: &str = "some a, path in input.request.paths; some b, _ in input.request.paths; \
                      some c, _ in input.request.paths; some d, _ in input.request.paths; \
                      some e, _ in input.request.paths";

/// Another number in each round.
const NUMBER: &str = "number := a + 64 * (b + 64 * (c + 64 * (d + 64 * e)))";

/// Conditions that compile, by what they try, and how each ends.
fn greedy() -> Vec<(&'static str, String, &'static str)> {
    const SLOW: &str = "condition-timeout";
    const LONG: &str = "condition-memory";
    let text = format!("\n`{}`\n", "x".repeat(900));
    let wide = format!("\n`{}`\n", "\u{390}".repeat(500));
    let all = |term: &str| format!("allow if count([{term} | {ROUNDS}]) == 0");
    let some = "l := {path | some path in input.request.paths}\nn := {number | some a, _ in input.request.paths; \
                some b, _ in input.request.paths; number := a + 64 * b}";
    let again = |first: &str, step: &str| {
        let line =
            |n: u32| step.replace("NEXT", &format!("v{n}")).replace("LAST", &format!("v{}", n - 1)) + "\n";
        format!("allow if {{\nv0 := {first}\n{} v199 == 1 }}", (1..200).map(line).collect::<String>())
    };
    vec![
        ("an exponential comprehension", all("1"), SLOW),
        ("a comprehension that keeps all paths", all("path"), SLOW),
        ("a set of all numbers", format!("allow if count({{number | {ROUNDS}; {NUMBER}}}) == 0"), SLOW),
        (
            "an object of all numbers",
            format!("allow if count({{number: 1 | {ROUNDS}; {NUMBER}}}) == 0"),
            SLOW,
        ),
        (
            "a rule of all numbers",
            format!("n contains number if {{ {ROUNDS}; {NUMBER} }}\nallow if count(n) == 0"),
            SLOW,
        ),
        (
            "a function of all numbers",
            format!("f(x) := number if {{ {ROUNDS}; {NUMBER} }}\nallow if f(1)"),
            SLOW,
        ),
        ("all copies of a string", all(&format!("lower({text})")), SLOW),
        ("all copies of a string that grows", all(&format!("upper({wide})")), SLOW),
        ("all cuts of a string", all(&format!("trim({text}, {text})")), SLOW),
        ("all reversals", all("strings.reverse(path)"), SLOW),
        ("all pieces of a string", all(&format!("count(split({text}, \"\"))")), SLOW),
        ("all joins of two paths", all("concat(\"\", [path, path])"), LONG),
        ("all sorts", format!("{some}\n{}", all("count(sort(n))")), SLOW),
        ("all unions", format!("{some}\n{}", all("count(n | {a})")), SLOW),
        (
            "all comparisons",
            format!("{some}\nm := {{x | some x in n}}\n{}", all("1").replace("]) == 0", "; m != n]) == 0")),
            SLOW,
        ),
        (
            "all errors that quote a value",
            format!("{some}\nallow if startswith(l, \"a\")"),
            "condition-error",
        ),
        ("a loop in a function", format!("f(x) if {{ {ROUNDS} }}\nallow if not f(1)"), SLOW),
        ("a loop below not", format!("found if {{ {ROUNDS}; false }}\nallow if not found"), SLOW),
        (
            "a loop below every",
            format!("allow if {{ every x in [1] {{ count([x | {ROUNDS}]) == 0 }} }}"),
            SLOW,
        ),
        (
            "a loop beside a default",
            format!("default allow := true\nallow := false if {{ {ROUNDS}; false }}"),
            SLOW,
        ),
        ("a number that is squared again and again", again("3", "NEXT := LAST * LAST"), SLOW),
        (
            "a string that is doubled again and again",
            again("\"x\"", "NEXT := concat(\"a\", [LAST, LAST])"),
            LONG,
        ),
        ("a concatenation of all paths", "allow if concat(\"\", input.request.paths) == \"\"".into(), LONG),
        ("a concatenation below not", "allow if not concat(\"\", input.request.paths)".into(), LONG),
        (
            "a concatenation in a function",
            "f(x) := concat(\"\", x)\nallow if not f(input.request.paths)".into(),
            LONG,
        ),
        (
            "a pattern that backtracks elsewhere",
            format!("allow if regex.match(`^(x+x+)+y$`, {text})"),
            "condition-false",
        ),
        ("a large pattern on all", all(&format!("regex.match(`(?:x?){{60}}x{{60}}y`, {text})")), SLOW),
    ]
}

#[test]
fn attack_16_conditions_that_would_take_all_are_refused_within_bounds() {
    let before = peak_kib();
    for (what, rego, ending) in greedy() {
        let condition = Condition::compile(&format!("package keyfold\n{rego}"));
        let condition = condition.unwrap_or_else(|error| panic!("{what}: {error}"));
        let failure = condition.check(&input()).expect_err(what);
        assert_eq!(failure.code(), ending, "{what}: {failure}");
        println!("{what}: {failure}, {} MiB", (peak_kib() - before) / 1024);
    }
    let growth = peak_kib() - before;
    assert!(growth < GROWTH_KIB_MAX, "{growth} KiB");
}

/// The most memory that this process ever had, in KiB.
fn peak_kib() -> u64 {
    status_kib("VmHWM:")
}

/// A field of proc(5)'s `status`.
fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn attack_16_the_deepest_conditions_that_compile_do_not_exhaust_the_stack() {
    let rules = |count: u32, rule: &dyn Fn(u32) -> String| -> String { (0..count).map(rule).collect() };
    for (what, rego) in [
        (
            "rules that use the next in their innermost expression",
            format!(
                "r126 := 1\nallow if r0 == 1\n{}",
                rules(126, &|n| format!("r{n} := {}r{}{}\n", "abs(".repeat(9), n + 1, ")".repeat(9)))
            ),
        ),
        (
            "rules that use the next in their innermost comprehension",
            format!(
                "r73 if true\nallow if r0\n{}",
                rules(73, &|n| format!(
                    "r{n} if {}r{}{}\n",
                    "count([1 | ".repeat(5),
                    n + 1,
                    "]) == 1".repeat(5)
                ))
            ),
        ),
        (
            "functions that call the next in a comprehension",
            format!(
                "f126(x) := x\nallow if f0(1) == 1\n{}",
                rules(126, &|n| format!("f{n}(x) := [y | y := abs(f{}(x))][0]\n", n + 1))
            ),
        ),
        ("a long chain", format!("allow if 41 == 1{}", " + 1".repeat(40))),
    ] {
        let condition = Condition::compile(&format!("package keyfold\n{rego}"));
        let condition = condition.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(condition.check(&input()), Ok(()), "{what}");
    }
}

#[test]
fn values_that_share_their_parts_are_refused() {
    // A tree of 2^60 leaves, made of 60 pairs: comparing or quoting it would be one step of the engine.
    let pairs = (1..=60).map(|n| format!("a{n} := [a{last}, a{last}]\n", last = n - 1));
    let rego = format!(
        "package keyfold\nallow if {{\na0 := [1]\n{}startswith(a60, a60) }}",
        pairs.collect::<String>()
    );
    let refused = Condition::compile(&rego).err().expect("a tree of pairs");
    assert!(refused.to_string().starts_with("line 4: an element of a list"), "{refused}");
}

#[test]
fn attack_16_sources_that_would_take_the_parser_apart_are_refused() {
    let fill = |unit: &str| unit.repeat((SOURCE_BYTES_MAX - 100) / unit.len());
    let lines = |unit: &str| fill(&format!("{unit}\n"));
    for (what, rego) in [
        ("too long", " ".repeat(SOURCE_BYTES_MAX)),
        ("open brackets", fill("[\n")),
        ("open braces", fill("{\n")),
        ("open parentheses", fill("(\n")),
        ("brackets hidden by a string", format!("x := \"]\\\"]\" {}", lines("[["))),
        ("brackets hidden by a comment", fill("[ # ]\n")),
        ("brackets hidden by a raw string", fill("[ `]`,\n")),
        ("a sum without end", format!("x := 1 {}", lines("+ 1"))),
        ("a comparison without end", format!("x := 1 {}", lines("== 1"))),
        ("a union without end", format!("x := {{1}} {}", lines("| {1}"))),
        ("a membership without end", format!("x := 1 {}", lines("in [1]"))),
        ("a reference without end", format!("x := input{}", fill(".a"))),
        (
            "chains within each other",
            format!(
                "x := {}",
                (0..10).fold("1".to_owned(), |inner, _| format!("({inner}{})", "\n+ 1".repeat(99)))
            ),
        ),
        ("negations without end", format!("x := {}1", fill("-"))),
        ("negations below each other", format!("x if {}1", fill("not "))),
        ("rules without end", lines("x := 1")),
        ("a long number", format!("x := {}", "9".repeat(10_000))),
        ("an exponent", "x := 1e2147483647".to_owned()),
        ("an exponent after a point", "x := 1.5E+2147483647".to_owned()),
        ("an exponent of a negative number", "x := -1e2147483647".to_owned()),
        ("a long string", format!("x := `{}`", lines("x"))),
    ] {
        let refused = Condition::compile(&format!("package keyfold\nallow if true\n{rego}\n"));
        let error = refused.err().unwrap_or_else(|| panic!("{what}: compiled"));
        println!("{what}: {error}");
    }
    // As nested as brackets may be, as often as there is room: parsed in time.
    let nested = format!("x := {}1{}\n", "[".repeat(10), "]".repeat(10));
    let wide: String = (0..55).map(|n| nested.replace('x', &format!("x{n}"))).collect();
    Condition::compile(&format!("package keyfold\nallow if true\n{wide}")).unwrap();
    let cluster = format!("{}1{},\n", "[{1:".repeat(4), "}]".repeat(4));
    let full =
        |count: usize| format!("package keyfold\nallow if true\nx := [\n{}1]\n", cluster.repeat(count));
    Condition::compile(&full(60)).unwrap();
    let error = Condition::compile(&full((SOURCE_BYTES_MAX - 200) / cluster.len())).err().unwrap();
    assert!(error.to_string().ends_with("there is too much in nested brackets"), "{error}");
}

/// A chain of `count` statements, each of which needs the next.
fn chain(count: usize) -> String {
    (0..count).map(|n| format!("a{n} = a{}\n", n + 1)).collect::<String>() + &format!("a{count} = [1]\n")
}

/// Sources that compiling would take long for, or for ever, or take much memory for.
fn long_to_compile() -> Vec<(&'static str, String, &'static str)> {
    const MUCH: &str = "it takes too much to compile";
    const TOKENS: &str = "it has more than 4096 words, signs and literals";
    let rules = |count: usize| {
        let rule = |n| format!("r{n} := r{}\n", n + 1);
        format!("allow if r0 == [1]\n{}r{count} := [1]\n", (0..count).map(rule).collect::<String>())
    };
    let names = |from: usize| (from..from + 75).map(|n| format!("x{n}")).collect::<Vec<_>>().join(", ");
    vec![
        (
            "a chain beside calls of a function of many rules",
            format!("{}allow if {{\n{}{}}}", "f(q) := 1\n".repeat(100), "f(1)\n".repeat(400), chain(100)),
            MUCH,
        ),
        (
            "a chain of rules beside calls of a function of many rules",
            format!("{}{}x if {{\n{}}}", rules(60), "f(q) := 1\n".repeat(60), "f(1)\n".repeat(700)),
            MUCH,
        ),
        (
            "a chain of rules beside statements",
            format!("{}x if {{\n{}}}", rules(120), "true\n".repeat(1000)),
            MUCH,
        ),
        ("the longest chain", format!("allow if {{\n{}}}", chain(800)), MUCH),
        ("a chain that is longer than that", format!("allow if {{\n{}}}", chain(2000)), TOKENS),
        (
            "chains in many rules",
            (0..18)
                .fold("allow if true\n".to_owned(), |all, n| all + &format!("r{n} if {{\n{}}}\n", chain(60))),
            MUCH,
        ),
        // The engine's scheduler looks at what stands before an index once more for each variable in it.
        ("an index after an index", format!("allow if {{ some a\ninput{} }}", "[a]".repeat(30)), MUCH),
        (
            "indices within each other",
            format!("allow if {{ some a\n{}input{} }}", "abs(".repeat(8), "[a][a][a][a])".repeat(8)),
            MUCH,
        ),
        (
            "lists of names that need each other",
            format!("allow if {{\n[{}] = [{}]\nx75 = 1 }}", names(0), names(1)),
            MUCH,
        ),
        (
            "names that are held with many comprehensions",
            format!(
                "allow if {{\n{}{}}}",
                (0..300).map(|n| format!("a{n} := 1\n")).collect::<String>(),
                "count([1 | true]) == 1\n".repeat(200)
            ),
            MUCH,
        ),
        ("a long list", format!("allow if true\nx := [\n{}1]", "1,\n".repeat(3000)), TOKENS),
        (
            "long references",
            format!("allow if true\nx := [\n{}1]", format!("input{},\n", ".a".repeat(95)).repeat(20)),
            "nested too deeply",
        ),
        (
            "many patterns",
            format!(
                "allow if {{\n{}}}",
                (0..300).map(|n| format!("regex.match(`{n}a{{400}}`, \"x\")\n")).collect::<String>()
            ),
            "the patterns are too large together",
        ),
    ]
}

#[test]
fn attack_16_sources_that_would_take_long_to_compile_are_refused_for_good() {
    for (what, rego, expected) in long_to_compile() {
        let refused = Condition::compile(&format!("package keyfold\n{rego}"));
        let error = refused.err().unwrap_or_else(|| panic!("{what}: compiled"));
        assert!(error.to_string().contains(expected), "{what}: {error}");
        assert!(!error.is_passing(), "{what}: {error}");
    }
}

/// What a compiled condition may hold, in KiB: twice what the largest did when this was written.
const CONDITION_KIB_MAX: u64 = 3 * 1024;

#[test]
fn attack_16_the_largest_conditions_that_compile_hold_little_memory() {
    let list = |item: &dyn Fn(usize) -> String, count| (0..count).map(item).collect::<String>();
    let large = [
        ("names", format!("allow if {{\n{}}}", list(&|n| format!("a{n} := 1\n"), 1000))),
        ("calls", format!("f(x) := 1\nallow if {{\n{}}}", "f(1)\n".repeat(750))),
        ("a table", format!("allow if true\nt := {{\n{}}}", list(&|n| format!("\"n{n}\": [\"a\"],\n"), 650))),
        (
            "comprehensions",
            format!(
                "allow if {{\n{}}}",
                list(&|_| "count([1 | count([1 | true]) == 1]) == 1\n".to_owned(), 160)
            ),
        ),
        (
            "names and comprehensions",
            format!(
                "allow if {{\n{}{}}}",
                list(&|n| format!("a{n} := 1\n"), 150),
                "count([1 | true]) == 1\n".repeat(100)
            ),
        ),
        (
            "patterns",
            format!("allow if {{\n{}}}", list(&|n| format!("regex.match(`{n}a{{100}}`, \"x\")\n"), 31)),
        ),
    ];
    // All are kept, so that none has its memory from one before it.
    let mut kept = Vec::new();
    for (what, rego) in large {
        let before = status_kib("VmRSS:");
        for _ in 0..20 {
            let condition = Condition::compile(&format!("package keyfold\n{rego}"));
            kept.push(condition.unwrap_or_else(|error| panic!("{what}: {error}")));
        }
        let growth = status_kib("VmRSS:").saturating_sub(before);
        println!("{what}: {} KiB each", growth / 20);
        assert!(growth < 20 * CONDITION_KIB_MAX, "{what}: {growth} KiB");
    }
}
