//! A text that is made of what an entry says and of what the definition asks for. What an entry says stays a text: it
//! never becomes a template.

/// One piece of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// As the entry says it.
    Text(String),
    /// An expression of a template.
    Code { code: String, secret: bool },
}

/// The whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words(Vec<Piece>);

impl Words {
    pub(super) fn text(text: &str) -> Self {
        let mut words = Self::default();
        words.push_text(text);
        words
    }

    pub(super) fn code(code: &str) -> Self {
        Self(vec![Piece::Code { code: code.to_owned(), secret: false }])
    }

    pub(super) fn secret(name: &str, encode: Option<&str>) -> Self {
        let encode = encode.map(|encode| format!(", encode=\"{encode}\"")).unwrap_or_default();
        Self(vec![Piece::Code { code: format!("secret(name=\"{name}\"{encode})"), secret: true }])
    }

    pub(super) fn push_text(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Piece::Text(before)) => before.push_str(text),
            Some(Piece::Code { .. }) | None if text.is_empty() => {}
            Some(Piece::Code { .. }) | None => self.0.push(Piece::Text(text.to_owned())),
        }
    }

    pub(super) fn push(&mut self, more: Self) {
        for piece in more.0 {
            match piece {
                Piece::Text(text) => self.push_text(&text),
                code @ Piece::Code { .. } => self.0.push(code),
            }
        }
    }

    pub(super) fn holds_secret(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Code { secret: true, .. }))
    }

    /// All of it, where the entry says all of it.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    pub(super) fn contains(&self, wanted: &str) -> bool {
        self.0.iter().any(|piece| match piece {
            Piece::Text(text) => text.contains(wanted),
            Piece::Code { code, .. } => code.contains(wanted),
        })
    }

    /// The parts between a character, where the entry says that character.
    pub(super) fn split(&self, at: char) -> Vec<Self> {
        let mut parts = vec![Self::default()];
        for piece in &self.0 {
            let code = Self(vec![piece.clone()]);
            let texts: Vec<&str> = match piece {
                Piece::Text(text) => text.split(at).collect(),
                Piece::Code { .. } => Vec::new(),
            };
            for (number, text) in texts.iter().enumerate() {
                if number > 0 {
                    parts.push(Self::default());
                }
                if let Some(last) = parts.last_mut() {
                    last.push_text(text);
                }
            }
            if let (true, Some(last)) = (texts.is_empty(), parts.last_mut()) {
                last.push(code);
            }
        }
        parts
    }

    /// What is before the first such character, and what is after it.
    pub(super) fn split_once(&self, at: char) -> Option<(Self, Self)> {
        let mut parts = self.split(at).into_iter();
        let first = parts.next()?;
        let mut rest = parts.next()?;
        for part in parts {
            rest.push_text(at.encode_utf8(&mut [0; 4]));
            rest.push(part);
        }
        Some((first, rest))
    }

    /// The template that renders to it.
    pub(super) fn template(&self) -> String {
        if let Some(text) = self.as_text().filter(|text| !text.contains("{{") && !text.contains("{%")) {
            return text.to_owned();
        }
        let mut template = String::new();
        for piece in &self.0 {
            match piece {
                // A brace that stands alone may come to stand beside another one.
                Piece::Text(text) => text.chars().for_each(|c| match c {
                    '{' => template.push_str("{{ \"{\" }}"),
                    c => template.push(c),
                }),
                Piece::Code { code, .. } => {
                    template.push_str("{{ ");
                    template.push_str(code);
                    template.push_str(" }}");
                }
            }
        }
        template
    }
}

/// A part of a value: text, or a name within braces.
pub(super) enum Part<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// The parts of a value. Braces around anything but a name are text, such as those of JSON.
pub(super) fn parts(value: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut rest, mut from) = (value, 0);
    while let Some(open) = rest[from..].find('{').map(|at| at + from) {
        let name = rest[open + 1..].split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
        let doubled =
            rest[..open].ends_with('{') || name.is_some_and(|name| rest[open + name.len() + 2..].starts_with('}'));
        match name.filter(|_| !doubled) {
            Some(name) => {
                parts.push(Part::Text(&rest[..open]));
                parts.push(Part::Name(name));
                rest = &rest[open + name.len() + 2..];
                from = 0;
            }
            None => from = open + 1,
        }
    }
    parts.push(Part::Text(rest));
    parts
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' '))
}

/// A text for a comment, which it must not leave.
pub(super) fn one_line(text: &str) -> String {
    let ends = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    text.chars().map(|c| if ends(c) { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_entry_says_is_no_template_whatever_stands_beside_it() {
        assert_eq!(Words::text("{\"a\": {}}").template(), "{\"a\": {}}");
        assert_eq!(Words::text("{{ x }}").template(), "{{ \"{\" }}{{ \"{\" }} x }}");
        let mut words = Words::text("a{");
        words.push(Words::code("env.x"));
        words.push_text("# b");
        assert_eq!(words.template(), "a{{ \"{\" }}{{ env.x }}# b");
    }

    #[test]
    fn a_value_is_cut_at_names_within_braces_alone() {
        let shown = |value: &str| -> String {
            let part = |part: &Part<'_>| match part {
                Part::Text(text) => format!("({text})"),
                Part::Name(name) => format!("<{name}>"),
            };
            parts(value).iter().map(part).collect()
        };
        assert_eq!(shown("Bearer {tok}"), "(Bearer )<tok>()");
        assert_eq!(shown("{a}{b-c}d"), "()<a>()<b-c>(d)");
        assert_eq!(shown(r#"{"a": {x}, "b": {}}"#), r#"({"a": )<x>(, "b": {}})"#);
        assert_eq!(shown("{{ x }} {{y}} {% z %} {"), "({{ x }} {{y}} {% z %} {)");
    }

    #[test]
    fn words_are_parted_where_the_entry_says_so() {
        let mut words = Words::text("a=b:");
        words.push(Words::secret("x", None));
        words.push_text(":c:d");
        let parts = words.split(':');
        assert_eq!(
            parts.iter().map(Words::template).collect::<Vec<_>>(),
            ["a=b", "{{ secret(name=\"x\") }}", "c", "d"]
        );
        let (before, after) = words.split_once('=').expect("parts");
        assert_eq!((before.template().as_str(), after.template().as_str()), ("a", "b:{{ secret(name=\"x\") }}:c:d"));
        assert!(after.holds_secret() && !before.holds_secret());
    }
}
