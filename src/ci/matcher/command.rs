//! Workflow commands in a script's output, as far as matchers are concerned.
//!
//! `::name key=value,key=value::data` at a line's beginning, or `##[name key=value;key=value]data`
//! anywhere in it, as GitHub's runner takes them apart.

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub struct Command {
    /// In lower case.
    pub name: String,
    properties: Vec<(String, String)>,
    /// What follows.
    pub data: String,
}

impl Command {
    /// Takes a line apart; nothing where it is no command.
    pub fn parse(line: &str) -> Option<Self> {
        if let Some(rest) = line.trim_start().strip_prefix("::") {
            let (head, data) = rest.split_once("::")?;
            let codes = [("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")];
            return Some(Self::of(head, ',', data, &codes));
        }
        let (head, data) = line.split_once("##[")?.1.split_once(']')?;
        Some(Self::of(
            head,
            ';',
            data,
            &[("%3B", ";"), ("%0D", "\r"), ("%0A", "\n"), ("%5D", "]"), ("%25", "%")],
        ))
    }

    fn of(head: &str, separator: char, data: &str, codes: &[(&str, &str)]) -> Self {
        let decode = |text: &str| codes.iter().fold(text.to_owned(), |text, (code, c)| text.replace(code, c));
        let (name, rest) = head.split_once(' ').unwrap_or((head, ""));
        let pairs = rest.split(separator).filter_map(|pair| pair.trim().split_once('='));
        Self {
            name: name.to_ascii_lowercase(),
            properties: pairs.map(|(key, value)| (key.to_owned(), decode(value))).collect(),
            data: decode(data),
        }
    }

    /// The value of a property.
    pub fn property(&self, name: &str) -> Option<&str> {
        let found = self.properties.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood() {
        let command = Command::parse("  ::Remove-Matcher owner=a%2Cb,x=1=2::data::more%0A").unwrap();
        assert_eq!((command.name.as_str(), command.data.as_str()), ("remove-matcher", "data::more\n"));
        assert_eq!((command.property("OWNER"), command.property("x")), (Some("a,b"), Some("1=2")));
        let command = Command::parse("12:00 ##[add-matcher]dir/x.json").unwrap();
        assert_eq!((command.name.as_str(), command.data.as_str()), ("add-matcher", "dir/x.json"));
        for line in ["", "::", ":: x", "a ::add-matcher::b", "##[x"] {
            assert_eq!(Command::parse(line), None, "{line}");
        }
    }
}
