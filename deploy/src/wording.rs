//! What libraries say of a value that is not right, in the words of those who have written it: no types, no ranges and no
//! parsers of the language that this is written in.

/// What a reader of data says of one value: serde's words, as JSON's reader has them.
pub fn of_data(said: &str) -> String {
    if let Some(said) = said.strip_prefix("invalid type: ").or_else(|| said.strip_prefix("invalid value: "))
        && let Some((found, expected)) = said.split_once(", expected ")
    {
        return match asked(expected) {
            Some(asked) => format!("{asked}, not {}", there(found)),
            None => format!("{expected} is expected, not {}", there(found)),
        };
    }
    if let Some((_, expected)) = said.strip_prefix("invalid length ").and_then(|said| said.split_once(", expected ")) {
        return asked(expected).unwrap_or_else(|| format!("{expected} is expected"));
    }
    if let Some(name) = said.strip_prefix("duplicate field ") {
        return format!("{name} is there twice");
    }
    for (theirs, ours) in [("unknown field ", "unknown field "), ("unknown variant ", "unknown value ")] {
        let Some((name, known)) = said.strip_prefix(theirs).and_then(|said| said.split_once(", ")) else { continue };
        return match names(known).as_slice() {
            [] => format!("{ours}{name}: nothing is expected here"),
            [one] => format!("{ours}{name}, expected {one}"),
            many => format!("{ours}{name}, expected one of {}", many.join(", ")),
        };
    }
    said.to_owned()
}

/// The unknown name that a reader tells of, and those that it knows.
pub fn unknown(said: &str) -> Option<(&str, Vec<&str>)> {
    let (name, known) = said.strip_prefix("unknown ")?.split_once(", ")?;
    Some((name.split('`').nth(1)?, names(known)))
}

/// What went wrong and why, the nearest cause first, and what to do about it: of each cause, lines that begin with `hint:` say that.
pub fn of_causes(causes: impl IntoIterator<Item = String>) -> (String, Vec<String>) {
    let (mut why, mut hints): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for cause in causes {
        let mut parts = cause.split("\n  hint: ").map(str::to_owned);
        why.extend(parts.next());
        hints.extend(parts);
    }
    (why.join(": "), hints)
}

/// The same as one text: why, and then the hints, each on a line of its own.
pub fn of_causes_and_hints(causes: impl IntoIterator<Item = String>) -> String {
    let (mut text, hints) = of_causes(causes);
    hints.iter().for_each(|hint| text.push_str(&format!("\n  hint: {hint}")));
    text
}

/// The names in backticks.
fn names(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What is expected.
fn asked(expected: &str) -> Option<String> {
    let whole = |most: &str| Some(format!("a whole number from 0 to {most} is expected"));
    let words = match expected {
        "a string" | "a borrowed string" | "string" => "a text is expected",
        "a map" => "fields are expected, such as `name: value`",
        "a sequence" => "a list is expected, such as [a, b]",
        "a boolean" => "`true` or `false` is expected",
        "u8" => return whole("255"),
        "u16" => return whole("65535"),
        "u32" => return whole("4294967295"),
        "u64" | "usize" | "i32" | "i64" => "a whole number is expected",
        "f32" | "f64" => "a number is expected",
        expected if expected.starts_with("struct ") => "fields are expected, such as `name: value`",
        expected if expected.starts_with("enum ") => "one of the known values is expected",
        _ => return None,
    };
    Some(words.to_owned())
}

/// What is there in its place.
fn there(found: &str) -> &str {
    match found {
        "null" | "unit value" | "Option value" => "nothing",
        "map" => "fields",
        "sequence" => "a list",
        "newtype variant" | "tuple variant" | "struct variant" | "unit variant" => "one of several",
        other => {
            let kinds = ["string ", "integer ", "boolean ", "floating point ", "character "];
            kinds.iter().find_map(|kind| other.strip_prefix(kind)).unwrap_or(other)
        }
    }
}

/// What JSON's reader says of a text that is no JSON, without the place.
pub fn of_json(said: &str) -> String {
    let first = said.split(" at line ").next().unwrap_or(said);
    if first.starts_with("EOF while") {
        return "it ends too early".to_owned();
    }
    let words = match first {
        "expected value" | "expected ident" => "a value is expected",
        "trailing characters" => "there is more after its end",
        "trailing comma" => "there is a comma too many",
        "key must be a string" => "a name in double quotes is expected",
        "expected `:`" => "`:` is expected",
        "expected `,` or `}`" => "`,` or `}` is expected",
        "expected `,` or `]`" => "`,` or `]` is expected",
        "invalid number" | "number out of range" => "this is no number that can be read",
        "invalid escape" => "this is no escape that JSON has",
        "recursion limit exceeded" => "lists and fields are nested too deeply here",
        "invalid unicode code point" | "unexpected end of hex escape" | "lone leading surrogate in hex escape" => {
            "this is no character"
        }
        first if first.starts_with("control character") => "a text holds a line break or another control character",
        first => return of_data(first),
    };
    words.to_owned()
}

/// What the reader of a command line says of a value, without the `error: ` before it.
pub fn of_argument(said: &str) -> String {
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let words = [
        ("invalid digit found in string", "it is not a whole number"),
        ("number too large to fit in target type", "it is too large"),
        ("number too small to fit in target type", "it is too small"),
        ("cannot parse integer from empty string", "it is empty"),
        ("invalid float literal", "it is not a number"),
    ];
    let mut text = said.to_owned();
    for (theirs, ours) in words {
        text = text.replace(theirs, ours);
    }
    let Some((before, range)) = text.split_once(" is not in ") else { return text };
    let (numbers, after) =
        range.split_at(range.find(|c: char| !(c.is_ascii_digit() || "-.=".contains(c))).unwrap_or(range.len()));
    match numbers.split_once("..=") {
        Some((least, most)) if !least.is_empty() && !most.is_empty() => {
            format!("{before} is not from {least} to {most}{after}")
        }
        Some(_) | None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_come_after_all_causes() {
        let causes = || ["no answer on s\n  hint: start it".to_owned(), "refused".to_owned()];
        assert_eq!(of_causes(causes()), ("no answer on s: refused".to_owned(), vec!["start it".to_owned()]));
        assert_eq!(of_causes_and_hints(causes()), "no answer on s: refused\n  hint: start it");
        assert_eq!(of_causes_and_hints(["alone".to_owned()]), "alone");
    }

    #[test]
    fn what_a_reader_of_data_says_is_said_without_its_types() {
        for (theirs, ours) in [
            (
                "invalid type: string \"x\", expected struct CallConfig",
                "fields are expected, such as `name: value`, not \"x\"",
            ),
            ("invalid type: sequence, expected a map", "fields are expected, such as `name: value`, not a list"),
            (
                "invalid length 0, expected struct CallConfig with 5 elements",
                "fields are expected, such as `name: value`",
            ),
            ("invalid type: integer `5`, expected a string", "a text is expected, not `5`"),
            ("invalid type: null, expected a sequence", "a list is expected, such as [a, b], not nothing"),
            ("invalid value: integer `-1`, expected u32", "a whole number from 0 to 4294967295 is expected, not `-1`"),
            ("invalid type: map, expected a boolean", "`true` or `false` is expected, not fields"),
            ("invalid value: string \"x\", expected a colour", "a colour is expected, not \"x\""),
            ("missing field `tool`", "missing field `tool`"),
            ("duplicate field `tool`", "`tool` is there twice"),
            ("unknown field `a`, expected `b`", "unknown field `a`, expected b"),
            ("unknown field `a`, expected `b` or `c`", "unknown field `a`, expected one of b, c"),
            ("unknown variant `a`, expected one of `b`, `c`, `d`", "unknown value `a`, expected one of b, c, d"),
            ("unknown field `a`, there are no fields", "unknown field `a`: nothing is expected here"),
            ("`soon` is not a length of time", "`soon` is not a length of time"),
        ] {
            assert_eq!(of_data(theirs), ours);
        }
        assert_eq!(unknown("unknown field `a`, expected `b` or `c`"), Some(("a", vec!["b", "c"])));
        assert_eq!(unknown("missing field `a`"), None);
    }

    #[test]
    fn what_a_reader_of_json_says_is_said_without_its_parser() {
        for (text, ours) in [
            ("", "it ends too early"),
            ("[1", "it ends too early"),
            ("nonsense", "a value is expected"),
            ("{a: 1}", "a name in double quotes is expected"),
            ("{\"a\" 1}", "`:` is expected"),
            ("[1 2]", "`,` or `]` is expected"),
            ("[1, ]", "there is a comma too many"),
            ("{} {}", "there is more after its end"),
            ("\"a\nb\"", "a text holds a line break or another control character"),
            (&"[".repeat(1000), "lists and fields are nested too deeply here"),
        ] {
            let error = serde_json::from_str::<serde_json::Value>(text).expect_err("no JSON");
            assert_eq!(of_json(&error.to_string()), ours, "{text}: {error}");
        }
    }

    #[test]
    fn what_a_command_line_says_of_numbers_is_said_in_words() {
        let digits = |text: &str| text.parse::<u16>().expect_err("no number").to_string();
        assert_eq!(of_argument(&digits("x")), "it is not a whole number");
        assert_eq!(of_argument(&digits("70000")), "it is too large");
        assert_eq!(of_argument(&digits("")), "it is empty");
        assert_eq!(
            of_argument("error: invalid value '0' for '--a': 0 is not in 1..=256"),
            "invalid value '0' for '--a': 0 is not from 1 to 256"
        );
        assert_eq!(of_argument("-9 is not in -5..=5\nmore"), "-9 is not from -5 to 5\nmore");
        assert_eq!(of_argument("the file is not in DIR"), "the file is not in DIR");
    }
}
