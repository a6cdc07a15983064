//! How the fields of a secret become files.

/// How the fields of a secret become files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One file a field, with exactly the field's bytes.
    Raw,
    /// One file of `KEY="value"` lines.
    Env,
    /// One file with a JSON object of strings.
    Json,
}

impl Format {
    /// Every format, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Env, Self::Json];

    /// The format of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The name in volume attributes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Env => "env",
            Self::Json => "json",
        }
    }

    /// What the default file name adds to the secret's last segment.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Raw => "",
            Self::Env => ".env",
            Self::Json => ".json",
        }
    }
}
