//! The machine's own apt configuration: which mirrors it uses, and whose keys
//! it trusts for them. Two formats, deb822 (`*.sources`) and one line per
//! source (`*.list`), see sources.list(5).

use std::fs;
use std::path::Path;

/// One place that apt takes binary packages from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AptSource {
    /// Addresses of mirrors.
    pub uris: Vec<String>,
    /// Suites or code names.
    pub suites: Vec<String>,
    /// Such as `main`.
    pub components: Vec<String>,
    /// Key files, or a whole key, as the configuration writes it; several lines
    /// keep their line breaks.
    pub signed_by: Option<String>,
    /// `Trusted: yes`, which a machine may say of its own mirror.
    pub trusted: bool,
}

impl AptSource {
    /// Whether this is the archive of a distribution itself, judged by the
    /// suite that its release calls its own.
    #[must_use]
    pub fn has_suite(&self, suite: &str) -> bool {
        self.suites.iter().any(|own| own == suite) && self.components.iter().any(|name| name == "main")
    }

    /// The same mirror and key with other suites, as a deb822 stanza.
    #[must_use]
    pub fn stanza(&self, suites: &[&str], components: &str) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {components}\n",
            self.uris.join(" "),
            suites.join(" ")
        );
        if let Some(key) = &self.signed_by {
            text += &format!("Signed-By: {}\n", key.replace('\n', "\n "));
        }
        if self.trusted {
            text += "Trusted: yes\n";
        }
        text
    }
}

/// Everything that is configured below a directory such as `/etc/apt`.
#[must_use]
pub fn read_configuration(etc: &Path) -> Vec<AptSource> {
    let mut sources =
        fs::read_to_string(etc.join("sources.list")).map(|text| parse_one_line(&text)).unwrap_or_default();
    let Ok(dir) = fs::read_dir(etc.join("sources.list.d")) else { return sources };
    let mut files: Vec<_> = dir.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            Some("list") => sources.extend(parse_one_line(&text)),
            _ => {}
        }
    }
    sources
}

/// Reads the deb822 format. Stanzas that are switched off, have no suite or
/// give source packages only are passed over.
#[must_use]
pub fn parse_deb822(text: &str) -> Vec<AptSource> {
    let mut sources = Vec::new();
    // A line of only blanks ends a stanza as an empty one does.
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(read_stanza(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn read_stanza(fields: &[(String, String)]) -> Option<AptSource> {
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let words = |name: &str| -> Vec<String> {
        field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let off = field("enabled").is_some_and(|value| ["no", "false", "off", "0"].contains(&value));
    if off || !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    let source = AptSource {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned).filter(|value| !value.is_empty()),
        trusted: field("trusted") == Some("yes"),
    };
    (!source.uris.is_empty() && !source.suites.is_empty()).then_some(source)
}

/// Reads the format of one line per source: `deb [options] uri suite components…`.
#[must_use]
pub fn parse_one_line(text: &str) -> Vec<AptSource> {
    text.lines().filter_map(read_line).collect()
}

fn read_line(line: &str) -> Option<AptSource> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut source = AptSource::default();
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        rest = after;
        for option in options.split_whitespace() {
            match option.split_once('=') {
                Some(("signed-by", value)) => source.signed_by = Some(value.replace(',', " ")),
                Some(("trusted", "yes")) => source.trusted = true,
                _ => {}
            }
        }
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    source.uris.push(words.next()?);
    source.suites.push(words.next()?);
    source.components.extend(words);
    Some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deb822_stanzas_with_comments_lists_and_keys() {
        let sources = parse_deb822(
            "Types: deb deb-src\n\
             # an address that is not used\n\
             URIs: http://mirror.example/debian http://other.example/debian\n\
             Suites: bookworm\n bookworm-updates\n\
             Components: main contrib\n\
             Signed-By: /usr/share/keyrings/archive.gpg\n\
             \n\
             types: deb\nuris: https://third.example/apt\nsuites: any/\n\
             signed-by:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY865UxYJ\n -----END PGP PUBLIC KEY BLOCK-----\n\
             \n  \n\
             Types: deb\nURIs: http://off.example\nSuites: bookworm\nEnabled: no\n\
             \n\
             Types: deb-src\nURIs: http://src.example\nSuites: bookworm\n",
        );
        assert_eq!(sources.len(), 2, "{sources:?}");
        assert_eq!(sources[0].uris.len(), 2);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert!(sources[0].has_suite("bookworm"));
        assert!(!sources[0].has_suite("trixie"));
        assert_eq!(sources[0].signed_by.as_deref(), Some("/usr/share/keyrings/archive.gpg"));
        let key = sources[1].signed_by.as_deref().unwrap();
        assert!(key.contains("\n.\nmDMEY865UxYJ\n"), "{key}");
    }

    #[test]
    fn one_line_sources_with_options() {
        let sources = parse_one_line(
            "# deb http://off.example/debian bookworm main\n\
             deb http://mirror.example/debian bookworm main contrib # as installed\n\
             deb\t[ arch=amd64 signed-by=/a.gpg,/b.gpg ] https://third.example/apt stable main\n\
             deb [trusted=yes] file:/srv/apt ./\n\
             deb-src http://mirror.example/debian bookworm main\n\
             debug\n",
        );
        assert_eq!(sources.len(), 3, "{sources:?}");
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[1].signed_by.as_deref(), Some("/a.gpg /b.gpg"));
        assert_eq!(sources[1].suites, ["stable"]);
        assert!(sources[2].trusted);
        assert!(sources[2].components.is_empty());
    }

    #[test]
    fn a_stanza_for_another_suite_reads_back_the_same() {
        let source = AptSource {
            uris: vec!["http://mirror.example/debian".into()],
            suites: vec!["bookworm".into()],
            components: vec!["main".into()],
            signed_by: Some("\nBEGIN\n.\nEND".into()),
            trusted: false,
        };
        let stanza = source.stanza(&["trixie-backports"], "main");
        let read = parse_deb822(&stanza);
        assert_eq!(read.len(), 1, "{stanza}");
        assert_eq!(read[0].suites, ["trixie-backports"]);
        assert_eq!(read[0].signed_by, source.signed_by);
    }
}
