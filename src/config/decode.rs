//! Decodes a [`Node`] into a type and finds every mistake in it, not just the first.
//!
//! The types say what is allowed: serde hands over each structure's field names and each enum's words. A pass ends at the
//! first value that does not fit; that value is set aside, its mistake noted, and the next pass goes on without it, until
//! nothing new is found. Passes are few: documents are small, and so are the numbers of mistakes in them.
//!
//! A mistake never repeats a value, except words where only few are allowed: it might be a secret in the wrong place.

use super::mistake::allowed;
use super::node::{Node, Value};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::path::Path;

/// A mistake before its file is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wrong {
    pub line: u64,
    pub field: String,
    pub message: String,
}

const MAX_PASSES: usize = 100;

/// Decodes the part of a document at `node`, whose key is in `line` and has the path `path`. Relative files of secrets
/// are taken from `directory`.
pub(super) fn decode<T: DeserializeOwned>(
    node: &Node,
    line: u64,
    path: &str,
    directory: &Path,
) -> Result<T, Vec<Wrong>> {
    let pass = Pass { directory, aside: RefCell::default(), found: RefCell::default() };
    for _ in 0..MAX_PASSES {
        let aside = pass.aside.borrow().len();
        let cursor = Cursor { node, path: path.to_owned(), pass: &pass };
        match visit(PhantomData::<T>, line, cursor) {
            Ok(value) if pass.found.borrow().is_empty() => return Ok(value),
            // Complete but for what was set aside, or nothing more to set aside.
            Ok(_) => break,
            Err(_) if pass.aside.borrow().len() == aside => break,
            Err(_) => {}
        }
    }
    Err(pass.found.into_inner().into_iter().collect())
}

struct Pass<'a> {
    directory: &'a Path,
    /// Paths of values that do not fit.
    aside: RefCell<BTreeSet<String>>,
    found: RefCell<BTreeSet<Wrong>>,
}

impl Pass<'_> {
    fn note(&self, line: u64, field: &str, message: String) {
        self.found.borrow_mut().insert(Wrong { line, field: field.to_owned(), message });
    }

    fn is_aside(&self, path: &str) -> bool {
        self.aside.borrow().contains(path)
    }
}

pub(super) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Why a value does not fit.
#[derive(Debug)]
enum Fault {
    /// Something further down does not, and was noted and set aside.
    Below,
    /// What it lacks was set aside before: there is nothing more to say about it.
    Spent,
    Missing(&'static str),
    /// It is of another type than this.
    Type(String),
    Other(String),
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below | Self::Spent => f.write_str("it has mistakes"),
            Self::Missing(field) => write!(f, "the field {field:?} is missing"),
            Self::Type(expected) => write!(f, "expected {expected}"),
            Self::Other(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        Self::Other(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn unknown_variant(word: &str, words: &'static [&'static str]) -> Self {
        Self::Other(format!("{word:?} is not known; {}", allowed(word, words.iter().copied())))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Other(format!("expected {}", plain(expected)))
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Type(plain(expected))
    }
}

/// What is expected, in words for people who do not write Rust.
fn plain(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "i32" | "i64" => "a whole number".into(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" => "a whole number from 0".into(),
        "f64" => "a number".into(),
        other => other.to_owned(),
    }
}

/// A place in the document.
struct Cursor<'a> {
    node: &'a Node,
    path: String,
    pass: &'a Pass<'a>,
}

impl<'a> Cursor<'a> {
    fn text(&self) -> Result<&'a str, Fault> {
        self.node.text().ok_or_else(|| match &self.node.value {
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                Fault::Other(format!("expected a text, found {}: put it in quotes", self.node.value.kind()))
            }
            _ => Fault::Type("a text".into()),
        })
    }

    fn child(&self, node: &'a Node, path: String) -> Cursor<'a> {
        Cursor { node, path, pass: self.pass }
    }

    /// Visits a mapping. Fields not among `known` (all are, if `None`) and repeated ones are noted and left out. A known
    /// field without a value is left out too, as in Kubernetes.
    fn map<'de, V: Visitor<'de>>(&self, known: Option<&'static [&'static str]>, visitor: V) -> Result<V::Value, Fault> {
        let Value::Map(fields) = &self.node.value else { return Err(Fault::Type("a mapping".into())) };
        let mut entries = Vec::new();
        let mut lines = BTreeMap::new();
        for field in fields {
            let path = join(&self.path, &field.key);
            let note = |message| self.pass.note(field.line, &path, message);
            if let Some(first) = lines.insert(field.key.as_str(), field.line) {
                note(format!("it is there already, in line {first}"));
            } else if let Some(known) = known.filter(|known| !known.contains(&field.key.as_str())) {
                note(format!("unknown field; {}", allowed(&field.key, known.iter().copied())));
            } else if !(self.pass.is_aside(&path) || known.is_some() && field.value.value == Value::Null) {
                entries.push((field.key.as_str(), field.line, self.child(&field.value, path)));
            }
        }
        let map = visitor.visit_map(Entries { rest: entries.into_iter(), value: None });
        map.map_err(|fault| match fault {
            Fault::Missing(field) if self.pass.is_aside(&join(&self.path, field)) => Fault::Spent,
            other => other,
        })
    }
}

impl<'de> de::Deserializer<'de> for Cursor<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => Err(Fault::custom("the number is too large")),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.map(None, visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(Fault::Type("true or false".into())),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.node.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::List(items) = &self.node.value else { return Err(Fault::Type("a list".into())) };
        let items = items.iter().enumerate();
        let items = items.map(|(index, item)| self.child(item, format!("{}[{index}]", self.path)));
        let items: Vec<_> = items.filter(|item| !self.pass.is_aside(&item.path)).collect();
        visitor.visit_seq(Items(items.into_iter()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.map(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.map(Some(fields), visitor)
    }

    /// A word, or a mapping of one word to its content.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let secret = name == "SecretRef";
        match &self.node.value {
            Value::Map(fields) => {
                let [field] = fields.as_slice() else {
                    return Err(Fault::Other(format!("expected exactly one of {}", words.join(", "))));
                };
                let path = join(&self.path, &field.key);
                if self.pass.is_aside(&path) {
                    return Err(Fault::Spent);
                }
                if !words.contains(&field.key.as_str()) {
                    let message = format!("unknown field; {}", allowed(&field.key, words.iter().copied()));
                    self.pass.note(field.line, &path, message);
                    return Err(Fault::Spent);
                }
                let directory = (secret && field.key == "file").then_some(self.pass.directory);
                let content = Some((field.line, self.child(&field.value, path)));
                visitor.visit_enum(Choice { word: &field.key, content, directory })
            }
            _ if secret => Err(Fault::custom(
                "secrets are given by reference, never written here: {file: PATH} or {env: NAME}; \
                 if this was a real secret, replace it",
            )),
            Value::Text(word) => visitor.visit_enum(Choice { word, content: None, directory: None }),
            _ => Err(Fault::Type(format!("one of {}", words.join(", ")))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// Runs `seed` on a place; if that does not fit, notes why and sets it aside.
fn visit<'de, S: DeserializeSeed<'de>>(seed: S, line: u64, cursor: Cursor<'_>) -> Result<S::Value, Fault> {
    let (pass, path, found) = (cursor.pass, cursor.path.clone(), cursor.node.value.kind());
    seed.deserialize(cursor).map_err(|fault| {
        match fault {
            Fault::Below => return Fault::Below,
            Fault::Spent => {}
            Fault::Type(expected) => pass.note(line, &path, format!("expected {expected}, found {found}")),
            Fault::Missing(_) | Fault::Other(_) => pass.note(line, &path, fault.to_string()),
        }
        pass.aside.borrow_mut().insert(path);
        Fault::Below
    })
}

struct Entries<'a> {
    rest: std::vec::IntoIter<(&'a str, u64, Cursor<'a>)>,
    value: Option<(u64, Cursor<'a>)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, line, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some((line, value));
        seed.deserialize(de::value::StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let (line, cursor) = self.value.take().ok_or(Fault::Spent)?;
        visit(seed, line, cursor)
    }
}

struct Items<'a>(std::vec::IntoIter<Cursor<'a>>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        self.0.next().map(|cursor| visit(seed, cursor.node.line, cursor)).transpose()
    }
}

struct Choice<'a> {
    word: &'a str,
    content: Option<(u64, Cursor<'a>)>,
    /// Set for a path that is taken from here when it is relative.
    directory: Option<&'a Path>,
}

impl<'de> EnumAccess<'de> for Choice<'_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        seed.deserialize(de::value::StrDeserializer::new(self.word)).map(|word| (word, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.content {
            None => Ok(()),
            Some(_) => Err(Fault::Other(format!("{:?} has no content", self.word))),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        let Some((line, cursor)) = self.content else {
            return Err(Fault::Other(format!("expected a mapping with {:?}", self.word)));
        };
        match (self.directory, cursor.node.text()) {
            (Some(directory), Some(path)) => {
                let path = directory.join(path).into_os_string().into_string();
                let path = path.map_err(|_| Fault::custom("the file's directory has a name that is not UTF-8"))?;
                seed.deserialize(de::value::StringDeserializer::new(path))
            }
            _ => visit(seed, line, cursor),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(Fault::Other(format!("{:?} cannot be written in a document", self.word)))
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        let Some((_, cursor)) = self.content else {
            return Err(Fault::Other(format!("expected a mapping with {:?}", self.word)));
        };
        cursor.map(Some(fields), visitor)
    }
}
