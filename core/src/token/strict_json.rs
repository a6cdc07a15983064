//! JSON as one must read foreign claims: an object, nothing after it, no name twice at any level (also when one of
//! the two is written with escapes), and not deep. `serde_json` alone keeps the last of two equal names.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::TokenRefusal;

/// How deep objects and arrays may be nested; Kubernetes' tokens have 3 levels.
const DEPTH_MAX: usize = 8;

/// Reads one JSON object.
///
/// # Errors
/// `Malformed`, `DuplicateName` or `TooDeep`.
pub(super) fn parse_object(json: &[u8]) -> Result<Map<String, Value>, TokenRefusal> {
    let refusal = Cell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Strict { depth: 0, refusal: &refusal }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) | Err(_) => {
            Err(refusal.take().unwrap_or(TokenRefusal::Malformed("a part is not a JSON object")))
        }
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    /// Why the reading stopped, if not for a fault of syntax: serde's errors carry only text.
    refusal: &'a Cell<Option<TokenRefusal>>,
}

impl Strict<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        match self.depth {
            DEPTH_MAX => Err(self.stop(TokenRefusal::TooDeep)),
            depth => Ok(Self { depth: depth + 1, ..self }),
        }
    }

    fn stop<E: Error>(self, refusal: TokenRefusal) -> E {
        self.refusal.set(Some(refusal));
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(inner)?;
            if object.insert(name, value).is_some() {
                return Err(self.stop(TokenRefusal::DuplicateName));
            }
        }
        Ok(object.into())
    }
}
