//! Texts of others on a terminal. What a server, a host or a file says may hold characters that are no text but orders to
//! the terminal: they clear it, write to the clipboard, or turn the order of letters round. They are shown instead, and
//! never obeyed.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// The text with all that a terminal would obey shown as `\u{…}`. Line breaks and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    shown(text, |c| is_order(c) && !matches!(c, '\n' | '\t'))
}

/// The same for what belongs into one line: line breaks and tabs are shown too, as `\n` and `\t`.
pub fn printable_line(text: &str) -> Cow<'_, str> {
    shown(text, is_order)
}

/// What begins each line of a text of others but its first: none of them can be taken for a line of ours.
const CONTINUED: &str = "\n    | ";

/// A text of others within lines of ours: what follows a line break is marked as more of the same.
pub fn continued(text: &str) -> Cow<'_, str> {
    let text = text.trim_end_matches('\n');
    if text.contains('\n') { Cow::Owned(text.replace('\n', CONTINUED)) } else { Cow::Borrowed(text) }
}

/// Whether a character changes how others are shown, or does something instead of being shown: the control characters
/// (C0, DEL, C1), the separators of lines and paragraphs, what embeds, overrides or isolates a direction (UAX #9), tags,
/// and the noncharacters that programs keep for themselves.
pub fn is_order(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{2028}' | '\u{2029}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{fdd0}'..='\u{fdef}'
            | '\u{e0000}'..='\u{e007f}')
}

fn shown(text: &str, is_shown: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(&is_shown) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        match c {
            '\n' if is_shown(c) => out.push_str("\\n"),
            '\t' if is_shown(c) => out.push_str("\\t"),
            c if is_shown(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A writer that passes on what is printable, and shows the rest. Whoever writes hands over whole entries of a log: each is
/// looked at by itself, and no line of it but the first begins where an entry does.
pub struct Printable<W>(pub W);

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let (entry, end) = text.strip_suffix('\n').map_or_else(|| (text.as_ref(), ""), |entry| (entry, "\n"));
        self.0.write_all(printable(entry).replace('\n', "\n    ").as_bytes())?;
        self.0.write_all(end.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whatever_a_terminal_would_obey_is_shown() {
        let cases = [
            ("plain text, ümläute, 日本語, 🦀", "plain text, ümläute, 日本語, 🦀"),
            ("two\nlines\tand a tab", "two\nlines\tand a tab"),
            ("\u{1b}[2J\u{1b}]52;c;ZXZpbA==\u{7}", "\\u{1b}[2J\\u{1b}]52;c;ZXZpbA==\\u{7}"),
            ("done\rfailed", "done\\u{d}failed"),
            ("\u{9b}31m \u{9d}0;title\u{9c}", "\\u{9b}31m \\u{9d}0;title\\u{9c}"),
            ("\u{0}\u{8}\u{7f}", "\\u{0}\\u{8}\\u{7f}"),
            ("a\u{202e}b\u{2066}c\u{2069}", "a\\u{202e}b\\u{2066}c\\u{2069}"),
            ("a\u{2028}b\u{2029}", "a\\u{2028}b\\u{2029}"),
            ("\u{fdd0}\u{e0041}", "\\u{fdd0}\\u{e0041}"),
        ];
        for (text, wanted) in cases {
            assert_eq!(printable(text), wanted);
        }
        assert_eq!(printable_line("one\n\ttwo\u{1b}"), "one\\n\\ttwo\\u{1b}");
    }

    #[test]
    fn a_writer_shows_what_is_no_text_at_all_too() {
        let mut written = Vec::new();
        Printable(&mut written).write_all(b"a\xff\x1b[m\xc2\x9b\n").expect("written");
        assert_eq!(String::from_utf8(written).expect("text"), "a\u{fffd}\\u{1b}[m\\u{9b}\n");
    }

    #[test]
    fn what_follows_a_line_break_in_a_text_of_others_begins_no_line_of_ours() {
        assert_eq!(continued("one line\n"), "one line");
        assert_eq!(continued("no\n  hint: pay\nNAME  STATE"), "no\n    |   hint: pay\n    | NAME  STATE");
        let mut written = Vec::new();
        Printable(&mut written).write_all(b"WARN no\n2026-01-01 INFO all is well\n").expect("written");
        assert_eq!(String::from_utf8(written).expect("text"), "WARN no\n    2026-01-01 INFO all is well\n");
    }

    proptest! {
        #[test]
        fn no_order_survives_and_text_stays_as_it_is(text in any::<String>()) {
            let shown = printable(&text);
            prop_assert!(!shown.chars().any(|c| is_order(c) && c != '\n' && c != '\t'));
            prop_assert!(!printable_line(&text).chars().any(is_order));
            if !text.chars().any(is_order) {
                prop_assert_eq!(shown.as_ref(), text.as_str());
            }
        }
    }
}
