//! Files of objects as operators write them: the command line's reader, then the server's.

use std::path::PathBuf;

use keyfold::documents::{self, Document};
use keyfold_core::object::{Kind, Spec};

/// A YAML file. What is read is written and read again unchanged; what the server takes, it writes and takes unchanged.
pub fn role_file(data: &[u8]) {
    match read(data) {
        Ok(documents) => {
            assert!(!documents.is_empty());
            let yaml = documents::to_yaml(&documents).expect("what was read can be written");
            assert_eq!(read(yaml.as_bytes()).ok().as_ref(), Some(&documents), "{yaml}");
            documents.iter().for_each(check_object);
        }
        Err(message) => {
            assert!(!message.chars().any(char::is_control), "a message steers the terminal: {message:?}")
        }
    }
}

fn read(mut data: &[u8]) -> Result<Vec<Document>, String> {
    documents::read(&[PathBuf::from("-")], &mut data).map_err(|failure| failure.to_string())
}

fn check_object(document: &Document) {
    let object = document.to_object();
    let kind = Kind::parse(&object.kind).expect("the command line knows no kind that the server does not");
    assert_eq!(Document::from_object(&object).as_ref(), Ok(document));
    let Ok(spec) = Spec::parse(kind, &object.spec_json) else { return };
    let json = spec.to_json();
    let again = Spec::parse(kind, &json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(again, spec, "{json}");
    assert_eq!(again.to_json(), json);
}
