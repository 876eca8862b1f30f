//! Simple indexes: the files of a project, from the JSON of PEP 691 or the HTML of PEP 503.

use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::upstream::{Error, Upstream, Wanted, is_named_safely, normal, read, shown};

/// Largest list of the files of a project, in bytes, and most files of it.
const PAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
const FILES_MAX: usize = 50_000;
/// What is asked for, the better first.
const ACCEPTED: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

/// A project of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Project {
    /// Its files.
    pub files: Vec<Listed>,
}

/// A file of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub filename: String,
    /// Where it is.
    pub url: Url,
    /// Its SHA-256, hexadecimal.
    pub sha256: Option<String>,
    /// What it says of its interpreter.
    pub requires_python: Option<String>,
    /// Why it is withdrawn, where it is.
    pub yanked: Option<String>,
    /// Whether its metadata can be had alone (PEP 658).
    pub has_metadata: bool,
}

#[derive(Deserialize)]
struct Page {
    files: Vec<PageFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PageFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: Hashes,
    requires_python: Option<String>,
    #[serde(default)]
    yanked: serde_json::Value,
    #[serde(default)]
    core_metadata: serde_json::Value,
    #[serde(default)]
    dist_info_metadata: serde_json::Value,
}

#[derive(Default, Deserialize)]
struct Hashes {
    sha256: Option<String>,
}

/// Asks for a project, where it may come from.
pub(crate) async fn project(upstream: &Upstream, name: &str) -> Result<Project, Error> {
    let mut missing = Error::Missing(name.to_owned());
    for base in upstream.bases(name) {
        let url = base.join(&format!("{}/", normal(name))).map_err(|_| Error::NoUrl(name.to_owned()))?;
        match upstream.get(&url, ACCEPTED, Wanted::List).await {
            Err(not_here @ (Error::Missing(_) | Error::PassesOn { .. })) => missing = not_here,
            Err(other) => return Err(other),
            Ok(answer) => {
                let is_json = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let is_json = is_json.is_some_and(|value| value.contains("json"));
                let at = answer.url().clone();
                let bytes = read(answer, PAGE_BYTES_MAX).await?;
                let asked = shown(&at);
                let taken_apart = move || {
                    if is_json {
                        from_json(&bytes, &at)
                    } else {
                        Some(from_html(&String::from_utf8_lossy(&bytes), &at))
                    }
                };
                // A page may be large, and others are asked meanwhile.
                let project = spawn_blocking(taken_apart).await.ok().flatten();
                let no_index = || Error::NoRegistry { url: asked.clone(), why: "is no simple index".to_owned() };
                let project = project.ok_or_else(no_index)?;
                if project.files.len() > FILES_MAX {
                    let why = format!("lists {} files; {FILES_MAX} are taken", project.files.len());
                    return Err(Error::NoRegistry { url: asked, why });
                }
                return Ok(project);
            }
        }
    }
    Err(missing)
}

fn from_json(bytes: &[u8], at: &Url) -> Option<Project> {
    let page: Page = serde_json::from_slice(bytes).ok()?;
    let file = |file: PageFile| {
        let url = at.join(&file.url).ok().filter(|url| is_named_safely(url, at))?;
        let is_said = |value: &serde_json::Value| value.is_object() || value == true;
        let yanked = match &file.yanked {
            serde_json::Value::String(why) => Some(why.clone()),
            serde_json::Value::Bool(true) => Some(String::new()),
            _ => None,
        };
        let has_metadata = is_said(&file.core_metadata) || is_said(&file.dist_info_metadata);
        let PageFile { filename, hashes, requires_python, .. } = file;
        Some(Listed { filename, url, sha256: hashes.sha256, requires_python, yanked, has_metadata })
    };
    Some(Project { files: page.files.into_iter().filter_map(file).filter(is_sound).collect() })
}

fn from_html(text: &str, at: &Url) -> Project {
    let mut files = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let Some(after) = rest.strip_prefix(['a', 'A']).filter(|after| after.starts_with(char::is_whitespace)) else {
            continue;
        };
        rest = after;
        let Some((attributes, end)) = attributes(rest) else { break };
        rest = &rest[end..];
        let inside = rest.split('<').next().unwrap_or_default();
        let of = |name: &str| attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let Some(url) = of("href").and_then(|href| at.join(&href).ok()).filter(|url| is_named_safely(url, at)) else {
            continue;
        };
        let digest = |part: &str| part.strip_prefix("sha256=").map(str::to_owned);
        let sha256 = url.fragment().and_then(|fragment| fragment.split('&').find_map(digest));
        let mut bare = url.clone();
        bare.set_fragment(None);
        let listed = Listed {
            filename: unescaped(inside.trim()),
            url: bare,
            sha256,
            requires_python: of("data-requires-python"),
            yanked: of("data-yanked"),
            has_metadata: of("data-core-metadata")
                .or_else(|| of("data-dist-info-metadata"))
                .is_some_and(|said| said != "false"),
        };
        if is_sound(&listed) {
            files.push(listed);
        }
    }
    Project { files }
}

/// The attributes of a tag whose text this begins with, and where the tag ends.
fn attributes(text: &str) -> Option<(Vec<(String, String)>, usize)> {
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        match text[at..].chars().next()? {
            '>' => return Some((found, at + 1)),
            '/' => at += 1,
            _ => {
                let length = text[at..].find(|c: char| c == '=' || c == '>' || c == '/' || c.is_whitespace())?.max(1);
                let name = text[at..at + length].to_ascii_lowercase();
                at += length;
                let value = match text[at..].strip_prefix('=') {
                    None => String::new(),
                    Some(after) => {
                        let (value, length) = match after.chars().next()? {
                            quote @ ('"' | '\'') => {
                                let length = after[1..].find(quote)?;
                                (&after[1..=length], length + 2)
                            }
                            _ => {
                                let length = after.find(|c: char| c == '>' || c.is_whitespace())?;
                                (&after[..length], length)
                            }
                        };
                        at += 1 + length;
                        unescaped(value)
                    }
                };
                found.push((name, value));
            }
        }
    }
}

/// Whether nothing in a file's entry is anything else than it should be.
fn is_sound(listed: &Listed) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+!".contains(c);
    let is_hex = |text: &String| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    !listed.filename.is_empty()
        && listed.filename.len() <= 255
        && listed.filename.chars().all(plain)
        && listed.sha256.as_ref().is_none_or(is_hex)
}

fn unescaped(text: &str) -> String {
    let known = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#x27;", "'"),
        ("&amp;", "&"),
    ];
    known.iter().fold(text.to_owned(), |text, (code, sign)| text.replace(code, sign))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page of a project as clients of all ages read it. `href` says where each file is for them.
/// One that is nowhere is left out.
pub(crate) fn page(project: &Project, mut href: impl FnMut(&Listed) -> Option<String>) -> String {
    let mut text =
        "<!DOCTYPE html><html><head><meta name=\"pypi:repository-version\" content=\"1.0\"></head><body>\n".to_owned();
    for file in &project.files {
        let Some(href) = href(file) else { continue };
        let digest = file.sha256.as_ref().map(|digest| format!("#sha256={digest}")).unwrap_or_default();
        text.push_str(&format!("<a href=\"{}{digest}\"", escaped(&href)));
        if let Some(spec) = &file.requires_python {
            text.push_str(&format!(" data-requires-python=\"{}\"", escaped(spec)));
        }
        if let Some(why) = &file.yanked {
            text.push_str(&format!(" data-yanked=\"{}\"", escaped(why)));
        }
        if file.has_metadata {
            text.push_str(" data-dist-info-metadata=\"true\" data-core-metadata=\"true\"");
        }
        text.push_str(&format!(">{}</a><br>\n", escaped(&file.filename)));
    }
    text.push_str("</body></html>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_project_are_the_same_from_json_and_from_html() {
        let at = Url::parse("https://h/simple/a/").expect("a URL");
        let digest = "ab".repeat(32);
        let json = format!(
            r#"{{"files":[{{"filename":"a-1-py3-none-any.whl","url":"../../files/a-1-py3-none-any.whl","hashes":{{"sha256":"{digest}"}},
            "requires-python":">=3.8","yanked":"bad","core-metadata":{{"sha256":"x"}}}},
            {{"filename":"../evil","url":"https://h/x","hashes":{{}}}},{{"filename":"b.whl","url":"file:///etc/passwd","hashes":{{}}}}]}}"#
        );
        let html = format!(
            "<html><body><a data-requires-python='&gt;=3.8' href=\"../../files/a-1-py3-none-any.whl#sha256={digest}\"\n data-yanked=\"bad\" data-core-metadata=true>a-1-py3-none-any.whl</a>\
             <a href='https://h/x'>../evil</a><a href='file:///etc/passwd'>b.whl</a><a href=cut"
        );
        let one = from_json(json.as_bytes(), &at).expect("a project");
        assert_eq!(one.files.len(), 1);
        assert_eq!(one.files[0].url.as_str(), "https://h/files/a-1-py3-none-any.whl");
        assert_eq!(one, from_html(&html, &at));
        let again = page(&one, |file| Some(file.url.to_string()));
        assert_eq!(from_html(&again, &at), one);
        assert!(!again.contains("=\">=3.8"), "{again}");
    }

    #[test]
    fn a_page_of_tags_without_end_is_gone_through_once() {
        let at = Url::parse("https://h/").expect("a URL");
        // Looked through anew for each tag, this would take hours.
        let tags = "<A >".repeat(2 * 1024 * 1024);
        let page = format!("<abbr href=x>no</abbr>{tags}<A\nHREF='b.whl#sha256={}&x=1'>b.whl</A>", "ab".repeat(32));
        let project = from_html(&page, &at);
        assert_eq!(project.files.len(), 1);
        assert_eq!(project.files[0].sha256, Some("ab".repeat(32)));
    }

    #[test]
    fn what_is_no_page_is_no_project() {
        let at = Url::parse("https://h/").expect("a URL");
        for text in
            ["", "<a ", "<a href", "<a href=\"", "<a =x>", "<a ====", "<a //", "<a \u{e4}=\u{e4}\u{e4}>\u{e4}</a>"]
        {
            assert_eq!(from_html(text, &at), Project::default(), "{text}");
        }
        assert_eq!(from_json(b"{}", &at), None);
    }
}
