//! Files that an agent makes of a revision: templates, rendered with its keys.
//!
//! What is rendered stands beside the published files as if it were one of them, so it is checked, staged and put in
//! place with them. The language is Jinja's (the crate `minijinja`), without escaping; a name that is not there is an
//! error, not an empty text.
//!
//! Owns: reading the templates, once, and rendering them. Never: a file outside of the tree; an endless loop, or
//! output beyond the limits of a value.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, ObjectExt, ObjectRepr};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};

use crate::tree::{self, EXECUTABLE, TreeError};
use crate::{Entry, Key, Limits, OverLimit, State};

/// Most steps of one template.
const FUEL: u64 = 10_000_000;
/// Endings that are no part of the name of what is rendered.
const ENDINGS: [&[u8]; 2] = [b".j2", b".jinja"];

/// A template, or a directory of them, and what is made of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    /// A file; or a directory, where each file below is one.
    pub source: PathBuf,
    /// The key, and so the path below the directory that is kept, of what is rendered. For a directory of templates
    /// what the paths in it are put below; empty: nothing. There the ending `.j2` or `.jinja` of a name is dropped.
    pub dest: String,
}

/// Why a template cannot be used, or not with a revision.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// It cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It is no text.
    #[error("the template {0} is not UTF-8")]
    NotText(PathBuf),
    /// Two templates make one file.
    #[error("two templates make {0}")]
    Twice(Key),
    /// It makes a file that is published.
    #[error("{0} is published, and a template makes it too")]
    Published(Key),
    /// What it makes cannot be where it is to be.
    #[error(
        "the template {} is to make {}, which is no path of a file below the directory: {why}; name it as SRC:DEST",
        template.display(), if dest.is_empty() { "." } else { dest }
    )]
    Target {
        /// The template.
        template: PathBuf,
        /// Where what it makes was to be.
        dest: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// It cannot be understood, or not be rendered with this revision.
    #[error("template {0}")]
    Template(String),
    /// It puts a value into its text that is none.
    #[error("template {0}: the value of {1} is not UTF-8, so it cannot be put into a text")]
    Binary(String, String),
    /// What it makes is over the limits.
    #[error("a template makes too much: {0}")]
    OverLimit(#[from] OverLimit),
}

/// Templates that were read and understood.
#[derive(Debug)]
pub(crate) struct Templates {
    env: Environment<'static>,
    /// What each makes, and whether that is executable, as its file is.
    made: Vec<(Key, String, u16)>,
    name: String,
    labels: Value,
    limits: Limits,
    /// Of all that decides what is made, but the revision.
    digest: [u8; 32],
}

impl Templates {
    /// Reads them. `name` and `labels` are the node's.
    pub(crate) fn read(
        templates: &[Template],
        name: &str,
        labels: &[(String, String)],
        limits: &Limits,
    ) -> Result<Templates, TemplateError> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_fuel(Some(FUEL));
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
        env.set_syntax(syntax.map_err(|e| TemplateError::Template(e.to_string()))?);
        let (mut made, mut hash) = (Vec::<(Key, String, u16)>::new(), blake3::Hasher::new());
        for (source, key, text, flags) in sources(templates, limits)? {
            if made.iter().any(|(other, ..)| *other == key) {
                return Err(TemplateError::Twice(key));
            }
            let source = source.display().to_string();
            for part in [key.as_bytes(), text.as_bytes(), &flags.to_be_bytes()] {
                hash.update(&(part.len() as u64).to_be_bytes()).update(part);
            }
            // One file may serve two destinations.
            let lines = text.clone();
            env.add_template_owned(source.clone(), text).map_err(|error| said(&error, &lines))?;
            made.push((key, source, flags));
        }
        hash.update(format!("{name:?}{labels:?}").as_bytes());
        let labels = labels.iter().map(|(name, value)| (name.clone(), value.clone()));
        let labels = Value::from_pairs(labels);
        let digest = *hash.finalize().as_bytes();
        Ok(Templates { env, made, name: name.to_owned(), labels, limits: *limits, digest })
    }

    /// Names them: others make other files of the same revision. Empty for none.
    pub(crate) fn mark(&self) -> Vec<u8> {
        if self.made.is_empty() { Vec::new() } else { self.digest.to_vec() }
    }

    /// What they make.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.made.iter().map(|(key, ..)| key)
    }

    /// The files of a revision: what is published, and what is made of it.
    pub(crate) fn render(&self, state: &State) -> Result<State, TemplateError> {
        let mut files = state.clone();
        if self.made.is_empty() {
            return Ok(files);
        }
        let used = Used::default();
        let keys = Value::from_object(Keys { state: state.clone(), used: used.clone() });
        for (key, source, flags) in &self.made {
            let template = self.env.get_template(source).map_err(|error| said(&error, ""))?;
            let (name, labels) = (&self.name, &self.labels);
            let mut out = Bounded { text: Vec::new(), most: self.limits.value };
            let context = context! { keys => keys.clone(), name => name, labels => labels };
            let rendered = template.render_captured_to(context, &mut out);
            if out.text.len() > out.most {
                let (size, limit) = (out.text.len(), out.most);
                return Err(OverLimit::Value { key: key.clone(), size, limit }.into());
            }
            rendered.map_err(|error| said(&error, template.source()))?;
            if let Some(of) = used.get() {
                return Err(TemplateError::Binary(source.clone(), of.clone()));
            }
            if files.put(key.clone(), Entry::new(*flags, out.text)).is_some() {
                return Err(TemplateError::Published(key.clone()));
            }
        }
        self.limits.check(files.keys(), files.bytes())?;
        Ok(files)
    }
}

/// An error with its causes, and the line of the template that it names.
fn said(error: &minijinja::Error, template: &str) -> TemplateError {
    let mut text = error.to_string();
    if let Some(line) = error.line().and_then(|line| template.lines().nth(line.checked_sub(1)?)) {
        text.push_str(&format!(": {}", line.trim()));
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    TemplateError::Template(text)
}

/// Every template: its file, what it makes, its text, the flags of what it makes.
fn sources(
    templates: &[Template],
    limits: &Limits,
) -> Result<Vec<(PathBuf, Key, String, u16)>, TemplateError> {
    let mut all = Vec::new();
    for Template { source, dest } in templates {
        let key = |template: &Path, bytes: &[u8]| {
            let wrong = |why| TemplateError::Target {
                template: template.to_owned(),
                dest: String::from_utf8_lossy(bytes).into_owned(),
                why,
            };
            let key = Key::new(bytes).map_err(|_| wrong("it has not 1 to 1,024 bytes"))?;
            match tree::check_key(&key) {
                Ok(()) => Ok(key),
                Err(TreeError::Key { why, .. }) => Err(wrong(why)),
                Err(other) => Err(other.into()),
            }
        };
        let text = |path: &Path, bytes: Vec<u8>| {
            String::from_utf8(bytes).map_err(|_| TemplateError::NotText(path.to_owned()))
        };
        if source.is_dir() {
            for (below, entry) in tree::read(source, limits)?.state.iter() {
                let path = source.join(std::ffi::OsStr::from_bytes(below.as_bytes()));
                let name = ENDINGS.iter().find_map(|ending| below.as_bytes().strip_suffix(*ending));
                let name = name.unwrap_or(below.as_bytes());
                let above = dest.trim_end_matches('/').as_bytes();
                let key = if above.is_empty() {
                    key(&path, name)?
                } else {
                    key(&path, &[above, b"/", name].concat())?
                };
                let text = text(&path, entry.value().to_vec())?;
                all.push((path, key, text, entry.flags()));
            }
        } else {
            let io = |error| TreeError::Io { path: source.clone(), error };
            let (bytes, facts) = (std::fs::read(source).map_err(io)?, std::fs::metadata(source).map_err(io)?);
            let flags = if facts.mode() & 0o100 != 0 { EXECUTABLE } else { 0 };
            all.push((source.clone(), key(source, dest.as_bytes())?, text(source, bytes)?, flags));
        }
    }
    Ok(all)
}

/// The keys of a revision, as templates see them: texts. Of a value that is none only its presence can be used.
#[derive(Debug)]
struct Keys {
    state: State,
    used: Used,
}

/// The first key whose value is no text and was put into one.
type Used = Arc<OnceLock<String>>;

impl Keys {
    fn value(&self, key: &str, entry: &Entry) -> Value {
        match std::str::from_utf8(entry.value()) {
            Ok(text) => Value::from(text),
            Err(_) => Value::from_object(Binary { key: key.to_owned(), used: self.used.clone() }),
        }
    }
}

/// A value that is no text. Put into one it would be another, so who does that is found out: the language would put
/// replacement characters into its place.
#[derive(Debug)]
struct Binary {
    key: String,
    used: Used,
}

impl Object for Binary {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.used.get_or_init(|| self.key.clone());
        Ok(())
    }
}

impl Object for Keys {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.state.get(key).map(|entry| self.value(key, entry))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.state.iter().filter(|(key, _)| std::str::from_utf8(key.as_bytes()).is_ok()).count())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        // What is no text cannot be named in a template.
        self.mapped_key_value_enumerator(|this| {
            Box::new(this.state.iter().filter_map(|(key, entry)| {
                let key = std::str::from_utf8(key.as_bytes()).ok()?;
                Some((Value::from(key), this.value(key, entry)))
            }))
        })
    }
}

/// Takes a byte more than the limit at most.
struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (self.most + 1).saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if room == 0 { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len().min(room)) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        temp: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            World { temp: tempfile::tempdir().expect("a folder") }
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.temp.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("writable");
            std::fs::write(&path, text).expect("writable");
            path
        }

        fn read(&self, templates: &[(&str, &str)]) -> Result<Templates, TemplateError> {
            let templates: Vec<Template> = (templates.iter())
                .map(|(source, dest)| Template {
                    source: self.temp.path().join(source),
                    dest: (*dest).into(),
                })
                .collect();
            let labels = [("zone".to_owned(), "eu".to_owned())];
            Templates::read(&templates, "web-1", &labels, &Limits { value: 1000, ..Limits::default() })
        }

        /// One template, with these keys.
        fn render(&self, text: &str, keys: &[(&str, &str)]) -> Result<String, String> {
            self.file("t", text);
            let templates = self.read(&[("t", "made")]).map_err(|e| e.to_string())?;
            let files = templates.render(&state(keys)).map_err(|e| e.to_string())?;
            let made = files.get("made").expect("made");
            Ok(String::from_utf8(made.value().to_vec()).expect("text"))
        }
    }

    fn state(keys: &[(&str, &str)]) -> State {
        keys.iter().map(|(k, v)| (Key::new(*k).expect("short"), Entry::new(0, v.to_string()))).collect()
    }

    #[test]
    fn a_template_sees_keys_name_and_labels() {
        let w = World::new();
        let keys = [("db/host", "10.0.0.1"), ("up/a", "<1>"), ("up/b", "2\n"), ("up/c", "3")];
        let text = "host {{ keys['db/host'] }} {{ name }} {{ labels.zone }}\n\
                    {% for key, value in keys|items if key is startingwith 'up/' %}\n\
                    - {{ key }}={{ value|trim }}\n\
                    {% endfor %}\n\
                    {{ keys['none']|default('-') }} {{ 'db/host' in keys }} {{ 'db' in keys }} {{ keys|length }}\n";
        assert_eq!(
            w.render(text, &keys).expect("rendered"),
            "host 10.0.0.1 web-1 eu\n- up/a=<1>\n- up/b=2\n- up/c=3\n- True False 4\n"
        );
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said_with_its_place() {
        let w = World::new();
        for (text, keys, why) in [
            ("a\n{{ keys['none'] }}", &[][..], "undefined value"),
            ("a\n{{ keys['a'] | nofilter }}", &[], "nofilter"),
            ("a\n{% if %}", &[], "syntax error"),
        ] {
            let error = w.render(text, keys).expect_err(text);
            let line = text.lines().nth(1).expect("two");
            assert!(error.contains(why) && error.contains("t:2") && error.contains(line), "{error}");
        }
        let error = w.render("{{ keys }}", &[("made", "")]).expect_err("published");
        assert!(error.contains("made is published"), "{error}");
        // Neither endless nor huge.
        let error = w.render("{% for a in range(9999) %}0123456789{% endfor %}", &[]).expect_err("too long");
        assert!(error.contains("1001 bytes") && error.contains("1000"), "{error}");
        let endless = "{% for a in range(99999) %}{% for a in range(99999) %}{% endfor %}{% endfor %}";
        assert!(w.render(endless, &[]).expect_err("endless").contains("fuel"));
    }

    #[test]
    fn a_value_that_is_no_text_fails_whatever_puts_it_into_one_and_nothing_else() {
        let w = World::new();
        let render = |text: &str| {
            w.file("t", text);
            let templates = w.read(&[("t", "made")]).expect("read");
            let mut state = state(&[("a", "1")]);
            state.put(Key::new("bin").expect("short"), Entry::new(0, &b"x\xff\xfey"[..]));
            templates.render(&state).map(|files| files.get("made").expect("made").value().to_vec())
        };
        for uses in [
            "{{ keys.bin }}",
            "{{ keys['bin']|trim }}",
            "{{ keys.bin ~ 'x' }}",
            "{{ [keys.bin] }}",
            "{{ keys.bin|upper|length }}",
            "{% for k, v in keys|items %}{{ v }}{% endfor %}",
        ] {
            let error = render(uses).expect_err(uses).to_string();
            assert!(error.contains("value of bin is not UTF-8"), "{uses}: {error}");
        }
        let others =
            "{{ keys.a }} {{ 'bin' in keys }} {% for k, v in keys|items if k == 'a' %}{{ v }}{% endfor %}";
        assert_eq!(render(others).expect("rendered"), b"1 True 1");
    }

    #[test]
    fn a_directory_of_templates_makes_a_tree_and_nothing_leaves_it() {
        let w = World::new();
        w.file("dir/x/y.conf.j2", "1");
        w.file("dir/plain", "2");
        let made = |dest: &str| {
            let templates = w.read(&[("dir", dest)]).expect("read");
            templates.keys().map(Key::to_string).collect::<Vec<_>>()
        };
        assert_eq!(made("etc/"), ["etc/plain", "etc/x/y.conf"]);
        assert_eq!(made(""), ["plain", "x/y.conf"]);
        for outside in ["../x", "/etc/passwd", "a//b", "", "a/./b"] {
            let error = w.read(&[("dir/plain", outside)]).expect_err(outside);
            assert!(matches!(error, TemplateError::Target { .. }), "{outside}: {error:?}");
            let error = error.to_string();
            assert!(error.contains("dir/plain") && error.contains("SRC:DEST"), "{error}");
        }
        let twice = w.read(&[("dir", ""), ("dir/plain", "x/y.conf")]);
        assert!(matches!(twice, Err(TemplateError::Twice(_))), "{twice:?}");
        std::fs::write(w.temp.path().join("dir/plain"), [0xff]).expect("writable");
        assert!(matches!(w.read(&[("dir", "")]), Err(TemplateError::NotText(_))));
    }

    #[test]
    fn other_templates_have_another_mark() {
        let w = World::new();
        let mark = |text: &str, dest: &str| {
            w.file("t", text);
            w.read(&[("t", dest)]).expect("read").mark()
        };
        assert_eq!(mark("1", "a"), mark("1", "a"));
        assert_ne!(mark("1", "a"), mark("2", "a"));
        assert_ne!(mark("1", "a"), mark("1", "b"));
        assert!(w.read(&[]).expect("none").mark().is_empty());
    }
}
