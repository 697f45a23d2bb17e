//! The built-in matchers on what their tools really print (`src/ci/matchers/samples`), and the scanner on
//! what scripts may do.

use anyhow::bail;

use super::*;

fn scanner() -> Scanner {
    let load = |path: &str| match path {
        "mine.json" => Ok(format::parse(MINE)?),
        other => bail!("{other} is not there"),
    };
    Scanner::new(builtin::load(|_| true).unwrap(), Obey::Everything, Box::new(load)).unwrap()
}

const MINE: &str =
    r#"{"problemMatcher": [{"owner": "gcc", "pattern": [{"regexp": "^mine (.*)", "message": 1}]}]}"#;

fn scan(text: &str) -> String {
    let mut scanner = scanner();
    scanner.feed(0, text.as_bytes());
    scanner.finish();
    let (found, more, complaints) = scanner.take_found();
    assert_eq!(more, [0; 3]);
    let mut lines: Vec<String> = found.iter().map(describe).collect();
    lines.extend(complaints);
    lines.join("\n")
}

fn describe(found: &Found) -> String {
    let number = |n: Option<u32>| n.map_or(String::new(), |n| format!(":{n}"));
    format!(
        "{} {}{}{} {} [{} {}]",
        found.level,
        found.file.as_deref().unwrap_or("-"),
        number(found.line),
        number(found.column),
        found.message,
        found.owner,
        found.code.as_deref().unwrap_or("-"),
    )
}

fn sample(name: &str) -> String {
    let path = format!("{}/src/ci/matchers/samples/{name}.log", env!("CARGO_MANIFEST_DIR"));
    scan(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
}

#[test]
fn compilers_are_understood() {
    insta::assert_snapshot!(sample("rustc"), @r"
    error src/lib.rs:3:5 mismatched types [rustc E0308]
    warning src/lib.rs:2:9 unused variable: `unused` [rustc -]
    error src/lib.rs:11:17 called `Option::unwrap()` on a `None` value [rust-panic -]
    error src/lib.rs:7:5 assertion `left == right` failed: sums [rust-panic -]
    ");
    insta::assert_snapshot!(sample("gcc"), @r"
    error inc.h:1:38 'tow' undeclared (first use in this function) [gcc -]
    warning bad.c:5:15 initialization of 'char *' from 'int' makes pointer from integer without a cast [gcc -Wint-conversion]
    warning bad.c:6:14 format '%d' expects argument of type 'int', but argument 2 has type 'char *' [gcc -Wformat=]
    warning bad.c:7:12 implicit declaration of function 'missing' [gcc -Wimplicit-function-declaration]
    warning bad.c:4:9 unused variable 'unused' [gcc -Wunused-variable]
    warning inc.h:1:43 control reaches end of non-void function [gcc -Wreturn-type]
    warning inc.h:1:12 'twice' defined but not used [gcc -Wunused-function]
    ");
    insta::assert_snapshot!(sample("clang"), @r"
    error ./inc.h:1:38 use of undeclared identifier 'tow' [gcc -]
    warning bad.c:5:11 incompatible integer to pointer conversion initializing 'char *' with an expression of type 'int' [gcc -Wint-conversion]
    warning bad.c:6:20 format specifies type 'int' but the argument has type 'char *' [gcc -Wformat]
    warning bad.c:7:12 implicit declaration of function 'missing' is invalid in C99 [gcc -Wimplicit-function-declaration]
    warning bad.c:4:9 unused variable 'unused' [gcc -Wunused-variable]
    ");
    insta::assert_snapshot!(sample("go"), @r#"
    error ./main.go:6:2 x declared but not used [go -]
    error ./main.go:7:14 undefined: undefined [go -]
    error ./main.go:8:2 fmt.Printf format %d has arg "s" of wrong type string [go -]
    error main_test.go:6 got 1, want 2 [go-test TestIt]
    "#);
    insta::assert_snapshot!(sample("javac"), @r"
    error A.java:4 incompatible types: String cannot be converted to int [javac -]
    warning A.java:5 found raw type: List [javac rawtypes]
    warning A.java:5 found raw type: ArrayList [javac rawtypes]
    warning A.java:6 unchecked call to add(E) as a member of the raw type List [javac unchecked]
    error A.java:7 cannot find symbol [javac -]
    ");
    insta::assert_snapshot!(sample("tsc"), @r"
    error a.ts:1:7 Type 'string' is not assignable to type 'number'. [tsc TS2322]
    error a.ts:2:34 Property 'foo' does not exist on type 'string'. [tsc TS2339]
    error a.ts:3:3 Argument of type 'number' is not assignable to parameter of type 'string'. [tsc TS2345]
    ");
    insta::assert_snapshot!(sample("swift"), @r#"
    error /src/Sources/App/main.swift:3:18 cannot convert value of type 'String' to specified type 'Int' [swift -]
    warning /src/Sources/App/main.swift:5:5 variable 'unused' was never used; consider replacing with '_' or removing it [swift -]
    error /src/Tests/AppTests/AppTests.swift:12 -[AppTests.AppTests testSum] : XCTAssertEqual failed: ("3") is not equal to ("4") [swift -]
    "#);
    assert_eq!(sample("tsc-pretty").replace("tsc-pretty", "tsc"), sample("tsc"));
}

#[test]
fn interpreters_are_understood() {
    insta::assert_snapshot!(sample("python"), @r"
    error /src/app.py:5 ValueError: no such thing [python -]
    error /src/syn.py:1 SyntaxError: invalid syntax [python -]
    ");
    insta::assert_snapshot!(sample("pytest"), @r"
    error test_app.py:18 RuntimeError: no database [pytest RuntimeError]
    error test_app.py:7 assert 2.0 == 3 [pytest AssertionError]
    error test_app.py:4 ZeroDivisionError: division by zero [pytest ZeroDivisionError]
    error test_app.py:14 AssertionError: letters [pytest AssertionError]
    ");
    insta::assert_snapshot!(sample("ruby"), @r"
    error a.rb:3 bad thing [ruby ArgumentError]
    warning a.rb:2 assigned but unused variable - x [ruby-warning -]
    error b.rb:3 syntax error, unexpected `end', expecting ')' [ruby-syntax -]
    ");
    insta::assert_snapshot!(sample("php"), @r#"
    warning /src/a.php:3 Undefined variable $undefined [php-warning -]
    error /src/a.php:2 Uncaught Exception: bad [php-uncaught -]
    error b.php:2 syntax error, unexpected token ";" [php -]
    "#);
}

#[test]
fn builders_are_understood() {
    insta::assert_snapshot!(sample("make"), @r"
    error inc.h:1:38 'tow' undeclared (first use in this function) [gcc -]
    warning bad.c:5:15 initialization of 'char *' from 'int' makes pointer from integer without a cast [gcc -Wint-conversion]
    warning bad.c:6:14 format '%d' expects argument of type 'int', but argument 2 has type 'char *' [gcc -Wformat=]
    warning bad.c:7:12 implicit declaration of function 'missing' [gcc -Wimplicit-function-declaration]
    warning bad.c:4:9 unused variable 'unused' [gcc -Wunused-variable]
    warning inc.h:1:43 control reaches end of non-void function [gcc -Wreturn-type]
    warning inc.h:1:12 'twice' defined but not used [gcc -Wunused-function]
    error Makefile:3 [Makefile:3: bad.o] Error 1 [make -]
    error - No rule to make target 'ghost.c', needed by 'nope'.  Stop. [make -]
    ");
    insta::assert_snapshot!(sample("cmake"), @r"
    warning CMakeLists.txt:3 be careful [cmake message]
    error sub.cmake:2 not so [cmake message]
    error CMakeLists.txt:7 stop here [cmake message]
    ");
}

#[test]
fn linters_are_understood() {
    insta::assert_snapshot!(sample("ruff"), @r"
    error app.py:1:1 Import block is un-sorted or un-formatted [ruff I001]
    error app.py:1:8 `os` imported but unused [ruff F401]
    error app.py:1:12 `sys` imported but unused [ruff F401]
    ");
    insta::assert_snapshot!(sample("ruff-concise"), @r"
    error app.py:1:1 Import block is un-sorted or un-formatted [flake8 I001]
    error app.py:1:8 `os` imported but unused [flake8 F401]
    error app.py:1:12 `sys` imported but unused [flake8 F401]
    ");
    insta::assert_snapshot!(sample("flake8"), @r"
    error app.py:1:1 'os' imported but unused [flake8 F401]
    error app.py:1:1 'sys' imported but unused [flake8 F401]
    error app.py:1:10 multiple imports on one line [flake8 E401]
    error app.py:2:1 expected 2 blank lines, found 0 [flake8 E302]
    error app.py:4:1 expected 2 blank lines, found 0 [flake8 E302]
    error app.py:6:1 expected 2 blank lines after class or function definition, found 0 [flake8 E305]
    error syn.py:1:8 SyntaxError: invalid syntax [flake8 E999]
    ");
    insta::assert_snapshot!(sample("mypy"), @r#"error app.py:3 Incompatible return value type (got "int", expected "str") [mypy return-value]"#);
    insta::assert_snapshot!(sample("mypy-columns"), @r#"error app.py:3:12 Incompatible return value type (got "int", expected "str") [mypy return-value]"#);
    insta::assert_snapshot!(sample("eslint-stylish"), @r"
    warning /src/lint.js:2:7 Expected '===' and instead saw '==' [eslint-stylish eqeqeq]
    error /src/lint.js:2:15 'undefinedFn' is not defined [eslint-stylish no-undef]
    error /src/lint.js:2:28 Missing semicolon [eslint-stylish semi]
    ");
    insta::assert_snapshot!(sample("eslint-compact"), @r"
    warning /src/lint.js:2:7 Expected '===' and instead saw '=='. [eslint-compact eqeqeq]
    error /src/lint.js:2:15 'undefinedFn' is not defined. [eslint-compact no-undef]
    error /src/lint.js:2:28 Missing semicolon. [eslint-compact semi]
    ");
    insta::assert_snapshot!(sample("shellcheck"), @r"
    error s.sh:2 Iterating over ls output is fragile. Use globs. [shellcheck SC2045]
    warning s.sh:5 In POSIX sh, [[ ]] is undefined. [shellcheck SC3010]
    ");
    insta::assert_snapshot!(sample("shellcheck-gcc"), @r"
    error s.sh:2:10 Iterating over ls output is fragile. Use globs. [shellcheck-gcc SC2045]
    warning s.sh:5:1 In POSIX sh, [[ ]] is undefined. [shellcheck-gcc SC3010]
    ");
    insta::assert_snapshot!(sample("hadolint"), @r"
    warning Dockerfile:1 Always tag the version of an image explicitly [hadolint DL3006]
    warning Dockerfile:2 Use the `-y` switch to avoid manual input `apt-get -y install <package>` [hadolint DL3014]
    warning Dockerfile:2 Pin versions in apt get install. Instead of `apt-get install <package>` use `apt-get install <package>=<version>` [hadolint DL3008]
    error Dockerfile:3 Do not use sudo as it leads to unpredictable behavior. Use a tool like gosu to enforce root [hadolint DL3004]
    warning Dockerfile:3 Use WORKDIR to switch to a directory [hadolint DL3003]
    error Dockerfile:4 MAINTAINER is deprecated [hadolint DL4000]
    ");
    insta::assert_snapshot!(sample("yamllint"), @r#"
    warning x.yaml:1:1 missing document start "---" [yamllint document-start]
    error x.yaml:1:5 too many spaces after colon [yamllint colons]
    error x.yaml:2:7 too few spaces after comma [yamllint commas]
    error x.yaml:2:8 too many spaces inside brackets [yamllint brackets]
    error x.yaml:3:1 duplication of key "a" in mapping [yamllint key-duplicates]
    error x.yaml:6:3 syntax error: expected <block end>, but found '<block sequence start>' [yamllint syntax]
    "#);
    insta::assert_snapshot!(sample("yamllint-parsable"), @r#"
    warning x.yaml:1:1 missing document start "---" [yamllint-parsable document-start]
    error x.yaml:1:5 too many spaces after colon [yamllint-parsable colons]
    error x.yaml:2:7 too few spaces after comma [yamllint-parsable commas]
    error x.yaml:2:8 too many spaces inside brackets [yamllint-parsable brackets]
    error x.yaml:3:1 duplication of key "a" in mapping [yamllint-parsable key-duplicates]
    error x.yaml:6:3 syntax error: expected <block end>, but found '<block sequence start>' [yamllint-parsable syntax]
    "#);
}

#[test]
fn every_tool_has_a_matcher_of_its_own_name() {
    for name in builtin::names() {
        let matchers = builtin::load(|wanted| wanted == name).unwrap();
        assert!(matchers.iter().any(|matcher| matcher.owner.starts_with(name)), "{name}");
    }
}

#[test]
fn colours_and_pieces_change_nothing() {
    let text = "\x1b[01m\x1b[Ka.c:3:1:\x1b[m\x1b[K \x1b[01;31m\x1b[Kerror: \x1b[m\x1b[Kno\r\n";
    let mut scanner = scanner();
    text.as_bytes().iter().for_each(|byte| scanner.feed(1, &[*byte]));
    let found = scanner.take_found().0;
    assert_eq!(found.iter().map(describe).collect::<Vec<_>>(), ["error a.c:3:1 no [gcc -]"]);
}

#[test]
fn the_two_streams_do_not_mix() {
    let mut scanner = scanner();
    scanner.feed(0, b"error[E0308]: mismatched types\n");
    scanner.feed(1, b" --> src/wrong.rs:1:1\n");
    scanner.feed(0, b" --> src/right.rs:3:5\n");
    let found = scanner.take_found().0;
    assert_eq!(
        found.iter().map(describe).collect::<Vec<_>>(),
        ["error src/right.rs:3:5 mismatched types [rustc E0308]"]
    );
}

#[test]
fn a_script_adds_replaces_and_removes_matchers() {
    let lines = "mine 0\n::add-matcher::mine.json\nmine 1\na.c:1:1: error: gone\n##[remove-matcher owner=GCC]\nmine 2\n";
    insta::assert_snapshot!(scan(lines), @"error - 1 [gcc -]");
    insta::assert_snapshot!(scan("::add-matcher::nowhere.json\na.c:1: error: still\n"), @r"
    error a.c:1 still [gcc -]
    add-matcher: nowhere.json is not there
    ");
}

#[test]
fn commands_that_a_script_stopped_are_not_obeyed() {
    let lines = "::stop-commands::word\n::add-matcher::mine.json\nmine 0\n::word::\n::add-matcher::mine.json\nmine 1\n";
    insta::assert_snapshot!(scan(lines), @"error - 1 [gcc -]");
}

#[test]
fn where_the_ci_obeys_commands_its_matchers_take_over() {
    let load = |_: &str| Ok(format::parse(MINE)?);
    let mut scanner = Scanner::new(builtin::load(|_| true).unwrap(), Obey::Leaving, Box::new(load)).unwrap();
    scanner.feed(
        0,
        b"::add-matcher::mine.json\nmine 1\na.c:1:1: error: the CI's now\na.ts(1,2): error TS1: ours\n",
    );
    let found = scanner.take_found().0;
    assert_eq!(found.iter().map(describe).collect::<Vec<_>>(), ["error a.ts:1:2 ours [tsc TS1]"]);
}

#[test]
fn without_end_is_counted_and_not_kept() {
    let mut scanner = scanner();
    (0..6000).for_each(|_| scanner.feed(0, b"a.c:1:1: warning: again\n"));
    let (found, more, _) = scanner.take_found();
    assert_eq!((found.len(), more), (5000, [0, 1000, 0]));
}
