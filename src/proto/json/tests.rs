use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::proto::app::{self, FromApp};
use crate::proto::rpc::Request;

/// Returns what [`raw_value`] accepts of these bytes, after a comparison with serde_json: of the bytes alone, in other
/// values, as params of a request, and as the result of an app.
fn checked(bytes: &[u8]) -> Option<&str> {
    let by_serde = serde_json::from_slice::<&RawValue>(bytes).map(RawValue::get);
    let own = str::from_utf8(bytes).ok().and_then(raw_value);
    let own = own.map(RawValue::get);
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    assert_eq!(own, by_serde.ok(), "{shown:?}");
    for (before, after) in [("[", "]"), ("{\"a\":[-1.5e+3, {}],\"b\":", ",\"c\":{}} ")] {
        let outer = [before.as_bytes(), bytes, after.as_bytes()].concat();
        let by_serde = serde_json::from_slice::<&RawValue>(&outer).map(RawValue::get);
        let own = str::from_utf8(&outer).ok().and_then(raw_value);
        assert_eq!(
            own.map(RawValue::get),
            by_serde.ok(),
            "{shown:?} in {before:?}"
        );
    }
    let body = [b"{\"in\":\"ping\",\"params\":", bytes, b"}"].concat();
    let request = Request::parse(&body).ok();
    let general = str::from_utf8(&body).ok();
    let general: Option<Request<'_>> = general.and_then(|text| serde_json::from_str(text).ok());
    let params = |request: Option<Request<'_>>| {
        request.map(|request| request.params.map(|params| params.get().to_owned()))
    };
    assert_eq!(params(request), params(general), "{shown:?} as params");
    let answer = [b"{\"id\":7,\"result\":", bytes, b"}"].concat();
    app::fuzz(&answer);
    if let Some(value) = own {
        let outcome = match FromApp::parse(&answer) {
            Ok(FromApp::Answer { id: 7, outcome }) => outcome.map(RawValue::get),
            other => panic!("{shown:?} as a result: {other:?}"),
        };
        assert_eq!(outcome, Ok(value), "{shown:?} as a result");
    }
    own
}

fn accept(texts: &[&str]) {
    let spaces: &[_] = &[' ', '\n', '\t', '\r'];
    for text in texts {
        let expected = Some(text.trim_matches(spaces));
        assert_eq!(checked(text.as_bytes()), expected, "{text:?}");
    }
}

fn refuse(texts: &[&[u8]]) {
    for text in texts {
        let shown = String::from_utf8_lossy(text);
        assert_eq!(checked(text), None, "{shown:?}");
    }
}

/// Returns the texts of a table, whose cells are separated by bars.
fn cells(table: &str) -> Vec<&str> {
    table
        .lines()
        .flat_map(|line| line.trim().split('|'))
        .filter(|cell| !cell.is_empty())
        .collect()
}

fn accept_each(table: &str) {
    accept(&cells(table));
}

fn refuse_each(table: &str) {
    let texts: Vec<&[u8]> = cells(table).into_iter().map(str::as_bytes).collect();
    refuse(&texts);
}

// The cases of Nicolas Seriot's test suite for JSON parsers, nst/JSONTestSuite: those that each parser must accept (y),
// those that it must refuse (n), and those in which parsers differ (i), in which serde_json decides.

#[test]
fn arrays_and_spaces_are_accepted() {
    accept_each(
        r#"[]|[[]   ]|[""]|["a"]|[false]|[true]|[null]|[null, 1, "1", {}]|[ 1]|[1 ]|[1,null,null,null,2]|[[[]],[{}]]
        [ "a" , [ ] , { } ]"#,
    );
    accept(&[
        "[1\n]",
        " [1]",
        "[2] ",
        " [] ",
        "[\"a\"]\n",
        "[true]\n",
        "\t[\r\n1 ,\t2\n]\r",
        "[                    1\n                ,2]",
    ]);
}

#[test]
fn scalars_alone_are_accepted() {
    accept_each(r#"false|true|null|42|-0.1|0|"asd"|""|" ""#);
    accept(&[" 7\n", "\ttrue", "\"\" "]);
}

#[test]
fn numbers_are_accepted() {
    accept_each(
        "[123e65]|[0e+1]|[0e1]|[ 4]|[20e1]|[-0]|[-123]|[-1]|[1E22]|[1E-2]|[1E+2]|[123e45]|[123.456e78]|[1e-2]|[1e+2]
        [123]|[123.456789]|[0.0]|[0E0]|[0e00]|[10]|[-0.0]|[12345678]|[123456789]|[1234567.12345678e12345678]
        [-0.000000000000000000000000000000000000000000000000000000000000000000000000000001]",
    );
}

#[test]
fn numbers_beyond_a_double_are_accepted() {
    accept_each(
        "[123.456e-789]|[-1e+9999]|[1.5e+9999]|[-123123e100000]|[123123e100000]|[123e-10000000]|[1e-400]
        [0.4e00669999999999999999999999999999999999999999999999999999999999999999999999999999999999999999969999999006]
        [-123123123123123123123123123123]|[100000000000000000000]|[-237462374673276894279832749832423479823246]",
    );
}

#[test]
fn objects_are_accepted() {
    accept_each(
        r#"{}|{ }|{"asd":"sdf", "dfg":"fgh"}|{"asd":"sdf"}|{"a":"b","a":"c"}|{"a":"b","a":"b"}|{"":0}|{"a":[]}
        {"foo\u0000bar": 42}|{ "min": -1.0e+28, "max": 1.0e+28 }|{"\uDFAA":0}|{"a" :1 , "b": {} }
        {"x":[{"id": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}], "id": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}
        {"title":"\u041f\u043e\u043b\u0442\u043e\u0440\u0430 \u0417\u0435\u043c\u043b\u0435\u043a\u043e\u043f\u0430" }"#,
    );
    accept(&["{\n\"a\": \"b\"\n}", "{\"a\" : \n{\"b\"\t:[1]} , \"c\":{}}"]);
}

#[test]
fn strings_are_accepted() {
    accept_each(
        r#"["\u0060\u012a\u12AB"]|["\uD801\udc37"]|["\ud83d\ude39\ud83d\udc8d"]|["\"\\\/\b\f\n\r\t"]|["\\u0000"]|["\""]
        ["a/*b*/c/*d//e"]|["\\a"]|["\\n"]|["\u0012"]|["\uFFFF"]|["asd"]|[ "asd"]|["\uDBFF\uDFFF"]|["new\u00A0line"]
        ["\u0000"]|["\u002c"]|["π"]|["asd "]|["\uD834\uDd1e"]|["\u0821"]|["\u0123"]|["\u0061\u30af\u30EA\u30b9"]
        ["new\u000Aline"]|["\uA66D"]|["\u005C"]|["⍂㈴⍂"]|["\u200B"]|["\u2064"]|["\uFDD0"]|["\uFFFE"]|["\u0022"]|["€𝄞"]
        ["\uDBFF\uDFFE"]|["\uD83F\uDFFE"]|["\uDBFF\uDFFE"]"#,
    );
    // Without escapes: unassigned characters, line separators, DEL, a byte order mark.
    accept_each(
        "[\"\u{10ffff}\"]|[\"\u{ffff}\"]|[\"\u{1bfff}\"]|[\"\u{7f}\"]|[\"a\u{7f}a\"]|[\"\u{feff}\"]|[\"\u{80}\u{9f}\"]
        [\"\u{2028}\"]|[\"\u{2029}\"]",
    );
}

#[test]
fn escaped_lone_surrogates_are_accepted() {
    accept_each(
        r#"["\uDADA"]|["\uD888\u1234"]|["\uD800\n"]|["\uDd1ea"]|["\uD800\uD800\n"]|["\ud800"]|["\ud800abc"]
        ["\uDd1e\uD834"]|["\uDFAA"]"#,
    );
}

#[test]
fn broken_arrays_are_refused() {
    refuse_each(
        r#"[1 true]|["": 1]|[""],|[,1]|[1,,2]|["x",,]|["x"]]|["",]|["x"|[x|[3[4]]|[1:2]|[,]|[-]|[   , ""]|[1,]|[1,,]
        [*]|[""|[1,|[{}|[fals]|[nul]|[tru]|[truee]|[True]|[NULL]|[1 2]|["a" "b"]|[}|[1}|[|[[|[]]|]|[][]|[1]x|[1]]|[1
        ["asd]|['|[,|[{|["a|['single quote']|["a"}|[undefined]|[1;2]|[1,2"#,
    );
    refuse(&[
        b"[a\xe5]",
        b"[\xff]",
        b"[\"a\",\n4\n,1,",
        b"[\"\x0ba\"\\f]",
        b"[1,\n1\n,1",
    ]);
}

#[test]
fn broken_numbers_are_refused() {
    refuse_each(
        "[++1234]|[+1]|[+Inf]|[-01]|[-1.0.]|[-2.]|[-NaN]|[.-1]|[.2e-3]|[0.1.2]|[0.3e+]|[0.3e]|[0.e1]|[0E+]|[0E]|[0e+]|[0e]
        [1.0e+]|[1.0e-]|[1.0e]|[1 000.0]|[1eE2]|[2.e+3]|[2.e-3]|[2.e3]|[9.e+]|[Inf]|[NaN]|[\u{ff11}]|[1+2]|[0x1]|[0x42]
        [Infinity]|[0e+-1]|[-123.123foo]|[-Infinity]|[-foo]|[- 1]|[-012]|[-.123]|[-1x]|[1ea]|[1.]|[.123]|[1.2a-3]|[012]
        [1.8011670033376514H-308]|[00]|-|1.|1e|01|+1|[--1]|2@|1]|[12345678:]|[123456789a]|[1_000]|[1e1.5]|[0-1]",
    );
    refuse(&[
        b"[123\xe5]",
        b"[1e1\xe5]",
        b"[0\xe5]",
        b"[1e\xe5]",
        b"123\0",
    ]);
}

#[test]
fn broken_objects_are_refused() {
    refuse_each(
        r#"["x", truth]|{[: "x"}|{"x", null}|{"x"::"b"}|{🇨🇭}|{"a":"a" 123}|{key: 'value'}|{"a" b}|{:"b"}|{"a" "b"}|{"a":
        {"a"|{1:1}|{9999E9999:1}|{null:null,null:null}|{"id":0,,,,,}|{'a':0}|{"id":0,}|{"a":"b"}/**/|{"a":"b"}/**//
        {"a":"b"}//|{"a":"b"}/|{"a":"b",,"c":"d"}|{a: "b"}|{"a":"a|{|{ "foo" : "bar", "a" }|{"a":"b"}#|{"a":"b"}#{}
        {]|{,|{[|{"a|{'a'|{}}|{"":|{"a":/*comment*/"b"}|{"a": true} "x"|{"x": true,|{"a":1]|{"asd":"asd"|{"a":}
        {"a":1,"b"}|{{}:1}|{[]:1}|{true:1}|{"a":1 "b":2}|{"a"=1}|{"a":1,}|{,"a":1}"#,
    );
    refuse(&[b"{\"\xb9\":\"0\",}", b"{[: \"x\"}\n"]);
}

#[test]
fn broken_strings_are_refused() {
    refuse_each(
        r#"["\uD800\"]|["\uD800\u"]|["\uD800\u1"]|["\uD800\u1x"]|[é]|["\\\"]|["\🌀"]|["\|["\x00"]|["\u00A"]
        ["\uD834\uDd"]|["\uD800\uD800\x"]|["\a"]|["\uqqqq"]|[\u0020"asd"]|["\"]|[\n]|"\x|["x]|abc|"\UA66D"|""x|"
        ["\u12"]|["\u+123"]|["\u 123"]|["\u12G4"]|["\'"]|["\U0041"]|"a"b"#,
    );
    refuse(&[
        b"[\"\\\0\"]",
        b"[\"\\\t\"]",
        b"[\"\\u\xe5\"]",
        b"[\"\\\xe5\"]",
        b"[\"a\0a\"]",
        b"[\"new\nline\"]",
        b"[\"\t\"]",
        b"[\"\x1f\"]",
    ]);
}

#[test]
fn other_structures_are_refused() {
    refuse_each(
        r#"<.>|[<null>]|aå|["\{["\{["\{["\{|é|*|[\u000A""]|[ false, nul|[ true, fals|[ false, tru|n|nulll|tru|/**/1|//"#,
    );
    refuse(&[
        b"",
        b" ",
        b"\xef\xbb{}",
        b"\xe5",
        b"[\0]",
        b"\0",
        b"[\x0c]",
        b"\xc2\xa01",
        b"[\xe2\x81\xa0]",
        // A byte order mark, and texts in UTF-16.
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe[\0\"\0\xe9\0\"\0]\0",
        b"[\0\"\0\xe9\0\"\0]\0",
        b"\0[\0\"\0\xe9\0\"\0]",
    ]);
}

#[test]
fn strings_that_are_not_utf_8_are_refused() {
    refuse(&[
        b"[\"\xff\"]",
        b"[\"\xe9\"]",
        b"[\"\x81\"]",
        b"[\"\xf4\xbf\xbf\xbf\"]",
        b"[\"\xc0\xaf\"]",
        b"[\"\xfc\x83\xbf\xbf\xbf\xbf\"]",
        b"[\"\xfc\x80\x80\x80\x80\x80\"]",
        b"[\"\xe0\xff\"]",
        b"[\"\xed\xa0\x80\"]",
        b"[\"\xe6\x97\xa5\xd1\x88\xfa\"]",
        b"{\"\xb9\":0}",
    ]);
}

#[test]
fn any_depth_is_accepted_if_all_brackets_close() {
    for depth in [1, 2, 63, 64, 65, 127, 128, 129, 192, 500, 100_000] {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        accept(&[&format!("{open}{close}"), &format!("{open}{{}}{close}")]);
        refuse(&[
            open.as_bytes(),
            &close.as_bytes()[..depth - 1],
            format!("{open}{}", &close[1..]).as_bytes(),
            format!("{open}{close}]").as_bytes(),
            format!("{open}{}}}", &close[1..]).as_bytes(),
        ]);
        // Each bracket is remembered by its kind, however many follow.
        let (open, close) = ("[{\"\":".repeat(depth), "}]".repeat(depth));
        accept(&[&format!("{open}[1,2]{close}")]);
        refuse(&[
            open.as_bytes(),
            format!("{open}1]{}", &close[1..]).as_bytes(),
        ]);
        accept(&[&format!(
            "{}{{\"a\":1,\"b\":2}}{}",
            "[3,".repeat(depth),
            ",4]".repeat(depth)
        )]);
    }
}

/// A string is read in pieces of 8 and of 64 bytes.
#[test]
fn a_special_byte_is_found_at_every_place_of_a_string() {
    for length in (0..11)
        .chain(31..34)
        .chain(39..42)
        .chain(95..98)
        .chain(103..106)
        .chain([160])
    {
        let plain = "x".repeat(length);
        accept(&[&format!("\"{plain}\""), &"7".repeat(length + 1)]);
        for at in 0..=length {
            for (special, is_accepted) in [
                (r"\n", true),
                (r"\u12345", true),
                ("é !#\u{7f}", true),
                ("\\", false),
                ("\"", false),
                ("\0", false),
                ("\n", false),
                ("\u{1f}", false),
                (r"\u123", false),
            ] {
                let text = format!("\"{}{special}{}\"", &plain[..at], &plain[at..]);
                // A hexadecimal digit may not follow by chance, and the last backslash escapes the quote.
                assert_eq!(checked(text.as_bytes()).is_some(), is_accepted, "{text:?}");
            }
            for (other, is_accepted) in [
                (".5", true),
                ("e1", true),
                ("a", false),
                (":", false),
                ("/", false),
            ] {
                let digits = "7".repeat(at + 1);
                let text = format!("{digits}{other}{}", "7".repeat(length - at));
                assert_eq!(checked(text.as_bytes()).is_some(), is_accepted, "{text:?}");
            }
        }
    }
}

/// If serde_json renamed the key, each text would be parsed twice.
#[test]
fn a_checked_value_is_not_parsed_again() {
    assert_eq!(unchecked("no JSON").map(RawValue::get), Some("no JSON"));
}

/// Returns the texts that mutations begin with: all of them are JSON.
fn seeds() -> Vec<String> {
    let deep = format!("{}{{\"a\":[]}}{}", "[{\"\":".repeat(31), "}]".repeat(31));
    let texts = [
        r#"{"id":1000,"name":"Ada Lovelace","tags":["first","said \"so\"","línea"],"geo":{"lat":51.5074,"lon":-0.1278}}"#,
        r#" [ 0 , -0.0e-0 , 1E+22 , 123.456e78 , true , false , null , "" , {} , [ ] ] "#,
        r#"["\u0060\ud83d\ude39\"\\\/\b\f\n\r\t","more than thirty-two bytes without an escape in them, é"]"#,
        "{\n        \"a\" : [\n            [[[[1]]]],\n            {\"b\":{\"c\":{}}}\n        ]\n}\n",
        "[12345678,1234567890123456,0.12345678901234567,-1,3]",
        "\"日本語\\u30e6𝄞 ⍂㈴⍂ up to a length that is read in vectors: 0123456789012345678901234567890123456789012345\"",
        "7",
        r#"["","a","ab","abc","abcd","abcde","abcdef","abcdefg","abcdefgh","abcdefghi"]"#,
    ];
    texts.map(str::to_owned).into_iter().chain([deep]).collect()
}

#[test]
fn mutations_begin_with_json() {
    for seed in seeds() {
        assert!(checked(seed.as_bytes()).is_some(), "{seed}");
    }
}

/// Returns what mutations insert.
fn pieces() -> Vec<&'static str> {
    let mut pieces = cells(
        r#"{|}|[|]|:|,|"|\|\"|\u|\u12aF|\n|\x|0|1|9|-|+|.|e|E|e+|true|false|null|t|n|é|日|""|{}|[]|"a":|/
        xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx|77777777"#,
    );
    pieces.extend([" ", "        ", "\n", "\t", "\r"]);
    pieces.extend(["\u{b}", "\0", "\u{1f}", "\u{7f}", "\u{feff}"]);
    pieces
}

/// One change of a text, at places that are counted in characters.
#[derive(Clone, Debug)]
enum Change {
    Insert(Index, &'static str),
    Replace(Index, &'static str),
    Remove(Index, Index),
    Repeat(Index, Index),
    Truncate(Index),
}

impl Change {
    fn apply(&self, text: &mut Vec<char>) {
        let length = text.len();
        let range = |from: &Index, to: &Index| {
            let (from, to) = (from.index(length + 1), to.index(length + 1));
            from.min(to)..from.max(to).min(from.min(to) + 40)
        };
        match self {
            Change::Insert(at, piece) => {
                let at = at.index(length + 1);
                text.splice(at..at, piece.chars());
            }
            Change::Replace(at, piece) => {
                let at = at.index(length + 1);
                text.splice(at..(at + 1).min(length), piece.chars());
            }
            Change::Remove(from, to) => drop(text.drain(range(from, to))),
            Change::Repeat(from, to) => {
                let part = text[range(from, to)].to_vec();
                let at = to.index(length + 1);
                text.splice(at..at, part);
            }
            Change::Truncate(at) => text.truncate(at.index(length + 1)),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let (at, piece) = (any::<Index>, || select(pieces()));
    prop_oneof![
        4 => (at(), piece()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        4 => (at(), piece()).prop_map(|(at, piece)| Change::Replace(at, piece)),
        2 => (at(), at()).prop_map(|(from, to)| Change::Remove(from, to)),
        1 => (at(), at()).prop_map(|(from, to)| Change::Repeat(from, to)),
        1 => at().prop_map(Change::Truncate),
    ]
}

/// More cases than usual, because they are short. PROPTEST_CASES sets another number.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(5_000)
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn mutated_texts_are_judged_as_by_serde_json(
        seed in select(seeds()),
        changes in vec(change(), 0..4),
    ) {
        let mut text: Vec<char> = seed.chars().collect();
        for change in &changes {
            change.apply(&mut text);
        }
        checked(text.into_iter().collect::<String>().as_bytes());
    }

    #[test]
    fn random_tokens_are_judged_as_by_serde_json(pieces in vec(select(pieces()), 0..12)) {
        checked(pieces.concat().as_bytes());
    }

    #[test]
    fn random_bytes_are_judged_as_by_serde_json(bytes in vec(any::<u8>(), 0..24)) {
        checked(&bytes);
    }
}
