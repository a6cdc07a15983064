use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::secret::Key;

fn key(byte: u8) -> Key {
    Key::from_bytes(&[byte; 32])
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    table: String,
    installation: Uuid,
    id: Uuid,
    keyspace: Option<Uuid>,
    purpose: String,
    state: String,
    material: Vec<u8>,
    generation: i64,
    paused: bool,
    compromised_at: Option<OffsetDateTime>,
}

impl Fields {
    fn row(&self) -> Row {
        Row::of(&self.table, self.installation)
            .uuid(self.id)
            .option(self.keyspace, RowEncoder::uuid)
            .str(&self.purpose)
            .str(&self.state)
            .bytes(&self.material)
            .i64(self.generation)
            .bool(self.paused)
            .option(self.compromised_at, RowEncoder::time)
            .finish()
    }
}

fn fields() -> Fields {
    Fields {
        table: "keks".into(),
        installation: Uuid::from_u128(1),
        id: Uuid::from_u128(2),
        keyspace: Some(Uuid::from_u128(3)),
        purpose: "data".into(),
        state: "active".into(),
        material: vec![1, 2, 3],
        generation: 7,
        paused: false,
        compromised_at: Some(datetime!(2026-11-23 05:40:54.123456 UTC)),
    }
}

#[test]
fn attack_18_no_field_of_a_row_can_be_changed_or_swapped() {
    let mac = RowMac::new(&key(7));
    let tag = mac.tag(&fields().row());
    assert_eq!(mac.verify(&fields().row(), &tag), Ok(()));

    let changes: [fn(&mut Fields); 14] = [
        |row| row.table = "secrets".into(),
        |row| row.installation = Uuid::from_u128(9),
        |row| row.id = Uuid::from_u128(9),
        |row| std::mem::swap(&mut row.id, &mut row.installation),
        |row| row.keyspace = None,
        |row| row.keyspace = Some(Uuid::nil()),
        |row| std::mem::swap(&mut row.purpose, &mut row.state),
        |row| (row.purpose, row.state) = ("dataa".into(), "ctive".into()),
        |row| row.state = "deactivated".into(),
        |row| row.material = vec![1, 2],
        |row| row.generation = 6,
        |row| row.paused = true,
        |row| row.compromised_at = None,
        |row| row.compromised_at = Some(datetime!(2026-11-23 05:40:54.123457 UTC)),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut changed = fields();
        change(&mut changed);
        assert_eq!(mac.verify(&changed.row(), &tag), Err(WrongMac), "change {at}");
    }
}

#[test]
fn a_mac_of_another_key_or_length_is_refused() {
    let row = fields().row();
    let tag = RowMac::new(&key(7)).tag(&row);
    assert_eq!(RowMac::new(&key(8)).verify(&row, &tag), Err(WrongMac));
    assert_eq!(RowMac::new(&key(7)).verify(&row, &tag[..31]), Err(WrongMac));
    assert_eq!(RowMac::new(&key(7)).verify(&row, b""), Err(WrongMac));
}

#[test]
fn what_is_finer_than_a_microsecond_does_not_count() {
    let with = |at| Row::of("t", Uuid::nil()).time(at).finish();
    assert_eq!(
        with(datetime!(2026-11-23 05:40:54.123456789 UTC)),
        with(datetime!(2026-11-23 05:40:54.123456 UTC))
    );
}

#[test]
fn nothing_of_the_key_can_be_shown() {
    assert_eq!(format!("{:?}", RowMac::new(&key(7))), "RowMac");
}

/// A field of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Uuid(u128),
    I64(i64),
    Bool(bool),
    Str(String),
    Bytes(Vec<u8>),
    Null,
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        any::<u128>().prop_map(Field::Uuid),
        any::<i64>().prop_map(Field::I64),
        any::<bool>().prop_map(Field::Bool),
        "[a-z]{0,3}".prop_map(Field::Str),
        prop::collection::vec(any::<u8>(), 0..4).prop_map(Field::Bytes),
        Just(Field::Null),
    ]
}

fn encoded(fields: &[Field]) -> Row {
    let row = Row::of("t", Uuid::nil());
    fields
        .iter()
        .fold(row, |row, field| match field {
            Field::Uuid(id) => row.uuid(Uuid::from_u128(*id)),
            Field::I64(number) => row.i64(*number),
            Field::Bool(value) => row.bool(*value),
            Field::Str(text) => row.str(text),
            Field::Bytes(bytes) => row.bytes(bytes),
            Field::Null => row.option(None::<()>, |row, ()| row),
        })
        .finish()
}

proptest! {
    #[test]
    fn no_two_rows_encode_alike(
        left in prop::collection::vec(field(), 0..5), right in prop::collection::vec(field(), 0..5)
    ) {
        prop_assert_eq!(left == right, encoded(&left) == encoded(&right));
    }

    #[test]
    fn every_flipped_bit_of_a_mac_is_noticed(bit in 0usize..256) {
        let mac = RowMac::new(&key(7));
        let mut tag = mac.tag(&fields().row());
        tag[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(mac.verify(&fields().row(), &tag), Err(WrongMac));
    }
}
