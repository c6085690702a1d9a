//! From the bytes of an upload to its lines: gzip undone, NDJSON and CSV read as they come. What is held at once is bounded, whatever is sent.

use crate::problem::{Code, Fault, Problem};
use csv_core::{ReadRecordResult, Reader};
use flate2::write::MultiGzDecoder;
use serde_json::{Map, Value, json};
use std::io::Write as _;

/// The longest line.
const MAX_LINE: usize = 64 * 1024;
/// How many columns a table may have.
const MAX_COLUMNS: usize = 64;
/// How much is unpacked at once. A byte of gzip unpacks to 1,032 at most.
const SLICE: usize = 512;
/// From here on the upload must not unpack to more than `MAX_RATIO` times its length: rows of people are not that alike.
const RATIO_FROM: u64 = 16 * 1024 * 1024;
const MAX_RATIO: u64 = 200;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A JSON object a line.
    Ndjson,
    /// A header row, then a row a line.
    Csv,
}

/// One line.
#[derive(Debug)]
pub(super) enum Line {
    /// What it says.
    Row {
        number: i64,
        length: usize,
        value: Value,
    },
    /// It says nothing that could be read.
    Bad { number: i64, fault: Fault },
}

/// Reads lines out of bytes.
pub(super) struct Lines {
    unpack: Option<MultiGzDecoder<Vec<u8>>>,
    rows: Rows,
    packed: u64,
    unpacked: u64,
}

enum Rows {
    Ndjson(Ndjson),
    Csv(Box<Csv>),
}

fn unreadable(what: impl Into<String>) -> Problem {
    Problem::new(Code::UploadUnreadable).detail(what)
}

impl Lines {
    pub(super) fn new(format: Format, gzip: bool) -> Self {
        Self {
            unpack: gzip.then(|| MultiGzDecoder::new(Vec::new())),
            rows: match format {
                Format::Ndjson => Rows::Ndjson(Ndjson::default()),
                Format::Csv => Rows::Csv(Box::new(Csv::new())),
            },
            packed: 0,
            unpacked: 0,
        }
    }

    /// Reads on, and adds the lines that are complete. Give it no more than [`Self::portion`] at once.
    pub(super) fn feed(&mut self, bytes: &[u8], found: &mut Vec<Line>) -> Result<(), Problem> {
        let Some(unpack) = &mut self.unpack else {
            return self.rows.feed(bytes, found);
        };
        let broken = |_| unreadable("this is no gzip, or it is damaged");
        unpack.write_all(bytes).map_err(broken)?;
        unpack.flush().map_err(broken)?;
        let plain = std::mem::take(unpack.get_mut());
        self.packed += bytes.len() as u64;
        self.unpacked += plain.len() as u64;
        if self.unpacked > RATIO_FROM && self.unpacked / self.packed.max(1) > MAX_RATIO {
            return Err(Problem::new(Code::TooLarge).detail(format!(
                "it unpacks to more than {MAX_RATIO} times its length"
            )));
        }
        self.rows.feed(&plain, found)
    }

    /// How many bytes may be fed at once.
    pub(super) fn portion(&self) -> usize {
        if self.unpack.is_some() {
            SLICE
        } else {
            MAX_LINE
        }
    }

    /// The upload is complete: the last line may lack its end.
    pub(super) fn finish(&mut self, found: &mut Vec<Line>) -> Result<(), Problem> {
        if let Some(mut unpack) = self.unpack.take() {
            // Without the trailer something is missing.
            unpack
                .try_finish()
                .map_err(|_| unreadable("the gzip ends too early"))?;
            let plain = std::mem::take(unpack.get_mut());
            self.rows.feed(&plain, found)?;
        }
        match &mut self.rows {
            Rows::Ndjson(rows) => rows.finish(found),
            Rows::Csv(rows) => rows.finish(found)?,
        }
        Ok(())
    }
}

impl Rows {
    fn feed(&mut self, bytes: &[u8], found: &mut Vec<Line>) -> Result<(), Problem> {
        match self {
            Self::Ndjson(rows) => {
                rows.feed(bytes, found);
                Ok(())
            }
            Self::Csv(rows) => rows.feed(bytes, found),
        }
    }
}

fn too_long(number: i64) -> Line {
    let detail = format!("a line has at most {MAX_LINE} bytes");
    let fault = Fault::new("", "too_long", detail);
    Line::Bad { number, fault }
}

#[derive(Default)]
struct Ndjson {
    held: Vec<u8>,
    number: i64,
    /// The rest of a line that is too long is passed over.
    skipping: bool,
}

impl Ndjson {
    fn feed(&mut self, bytes: &[u8], found: &mut Vec<Line>) {
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            if !self.skipping {
                self.held.extend_from_slice(part);
                if self.held.len() > MAX_LINE {
                    self.held.clear();
                    self.skipping = true;
                }
            }
            if parts.peek().is_some() {
                self.line(found);
            }
        }
    }

    fn line(&mut self, found: &mut Vec<Line>) {
        self.number += 1;
        let number = self.number;
        if std::mem::take(&mut self.skipping) {
            found.push(too_long(number));
            return;
        }
        let text = self.held.trim_ascii();
        if !text.is_empty() {
            found.push(match serde_json::from_slice(text) {
                Ok(value) => Line::Row {
                    number,
                    length: text.len(),
                    value,
                },
                Err(error) => {
                    let detail = format!("column {}", error.column());
                    let fault = Fault::new("", "not_json", detail);
                    Line::Bad { number, fault }
                }
            });
        }
        self.held.clear();
    }

    fn finish(&mut self, found: &mut Vec<Line>) {
        if self.skipping || !self.held.is_empty() {
            self.line(found);
        }
    }
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    /// A field of the row.
    Field(&'static str),
    /// A field of the user.
    User(&'static str),
    /// The mode of the target.
    Target,
    /// The value of a detail with this label.
    Detail(String),
}

const FIELDS: [&str; 7] = [
    "key",
    "relying_party",
    "kind",
    "title",
    "message",
    "expires_in",
    "correlation_id",
];

impl Column {
    fn of(name: &str) -> Option<Self> {
        let name = name.trim();
        let field = FIELDS.iter().find(|field| **field == name);
        field
            .map(|field| Self::Field(field))
            .or_else(|| match name {
                "user" | "external_id" => Some(Self::User("external_id")),
                "user_id" => Some(Self::User("id")),
                "target" => Some(Self::Target),
                _ => {
                    let label = name.strip_prefix("detail.")?;
                    (!label.is_empty()).then(|| Self::Detail(label.to_owned()))
                }
            })
    }
}

struct Csv {
    reader: Reader,
    output: Vec<u8>,
    ends: Vec<usize>,
    filled: usize,
    ended: usize,
    too_long: bool,
    columns: Option<Vec<Column>>,
    /// How many rows were read, the header too: what a spreadsheet shows beside them.
    number: i64,
}

impl Csv {
    fn new() -> Self {
        Self {
            reader: Reader::new(),
            output: vec![0; MAX_LINE],
            ends: vec![0; MAX_COLUMNS + 1],
            filled: 0,
            ended: 0,
            too_long: false,
            columns: None,
            number: 0,
        }
    }

    fn feed(&mut self, mut bytes: &[u8], found: &mut Vec<Line>) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let read = self.read(bytes, found)?;
            bytes = &bytes[read..];
        }
        Ok(())
    }

    fn finish(&mut self, found: &mut Vec<Line>) -> Result<(), Problem> {
        // An empty input tells the reader that this was all.
        while !matches!(self.step(&[]).0, ReadRecordResult::End) {
            self.record(found)?;
        }
        if self.columns.is_none() {
            return Err(unreadable("the header row is missing"));
        }
        Ok(())
    }

    fn step(&mut self, bytes: &[u8]) -> (ReadRecordResult, usize) {
        loop {
            let (result, read, written, ended) = self.reader.read_record(
                bytes,
                &mut self.output[self.filled..],
                &mut self.ends[self.ended..],
            );
            self.filled += written;
            self.ended += ended;
            let full = matches!(
                result,
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull
            );
            if full {
                // What is too long is passed over up to its end.
                self.too_long = true;
                (self.filled, self.ended) = (0, 0);
            }
            if !full || read > 0 {
                return (result, read);
            }
        }
    }

    fn read(&mut self, bytes: &[u8], found: &mut Vec<Line>) -> Result<usize, Problem> {
        let (result, read) = self.step(bytes);
        if matches!(result, ReadRecordResult::Record) {
            self.record(found)?;
        }
        Ok(read)
    }

    fn record(&mut self, found: &mut Vec<Line>) -> Result<(), Problem> {
        self.number += 1;
        let number = self.number;
        let (filled, ended) = (self.filled, self.ended);
        (self.filled, self.ended) = (0, 0);
        let too_long_one = std::mem::take(&mut self.too_long);
        let mut cells = Vec::with_capacity(ended);
        let mut from = 0;
        // Of a row that is too long only its last part is there.
        for end in &self.ends[..if too_long_one { 0 } else { ended }] {
            cells.push(std::str::from_utf8(&self.output[from..*end]));
            from = *end;
        }
        let Some(columns) = &self.columns else {
            let header = cells
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .ok()
                .filter(|_| !too_long_one)
                .ok_or_else(|| unreadable("the header row is not UTF-8, or too long"))?;
            self.columns = Some(columns_of(&header)?);
            return Ok(());
        };
        found.push(if too_long_one {
            too_long(number)
        } else {
            match value_of(columns, &cells) {
                Ok(value) => Line::Row {
                    number,
                    length: filled,
                    value,
                },
                Err(fault) => Line::Bad { number, fault },
            }
        });
        Ok(())
    }
}

fn columns_of(header: &[&str]) -> Result<Vec<Column>, Problem> {
    let mut columns = Vec::with_capacity(header.len());
    for name in header {
        // Spreadsheets put a mark before the first name.
        let name = name.trim_start_matches('\u{feff}');
        let pointer = format!("/{}", name.trim().replace('~', "~0").replace('/', "~1"));
        let column = Column::of(name)
            .ok_or_else(|| Problem::fault(&pointer, "unknown_field", "no such column is known"))?;
        if columns.contains(&column) {
            let detail = "this column is there twice";
            return Err(Problem::fault(&pointer, "not_allowed", detail));
        }
        columns.push(column);
    }
    Ok(columns)
}

/// A row of a table as the object that it stands for. An empty cell is a field that is left out.
fn value_of(
    columns: &[Column],
    cells: &[Result<&str, std::str::Utf8Error>],
) -> Result<Value, Fault> {
    if cells.len() != columns.len() {
        let detail = format!("{} cells under {} columns", cells.len(), columns.len());
        return Err(Fault::new("", "wrong_form", detail));
    }
    let (mut row, mut user, mut details) = (Map::new(), Map::new(), Vec::new());
    for (column, cell) in columns.iter().zip(cells) {
        let cell = cell.map_err(|_| Fault::new("", "wrong_form", "this is not UTF-8"))?;
        if cell.is_empty() {
            continue;
        }
        match column {
            Column::Field(name) => {
                row.insert((*name).to_owned(), json!(cell));
            }
            Column::User(name) => {
                user.insert((*name).to_owned(), json!(cell));
            }
            Column::Target => {
                row.insert("target".to_owned(), json!({"mode": cell}));
            }
            Column::Detail(label) => details.push(json!({"label": label, "value": cell})),
        }
    }
    if !user.is_empty() {
        row.insert("user".to_owned(), Value::Object(user));
    }
    if !details.is_empty() {
        row.insert("details".to_owned(), Value::Array(details));
    }
    Ok(Value::Object(row))
}

#[cfg(test)]
mod tests {
    use super::{Format, Line, Lines, MAX_LINE};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;

    /// The lines of `bytes`, fed in parts of `size`: each as its number and what it says, or the code of its fault.
    fn read(format: Format, gzip: bool, bytes: &[u8], size: usize) -> Vec<(i64, String)> {
        let mut lines = Lines::new(format, gzip);
        let mut found = Vec::new();
        for part in bytes.chunks(size) {
            lines.feed(part, &mut found).unwrap();
        }
        lines.finish(&mut found).unwrap();
        let said = |line| match line {
            Line::Row { number, value, .. } => (number, value.to_string()),
            Line::Bad { number, fault } => (number, fault.code),
        };
        found.into_iter().map(said).collect()
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut to = GzEncoder::new(Vec::new(), Compression::default());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_come() {
        let text = b"{\"a\":1}\r\n\n{oops\n \n{\"a\":\"\xc3\xa9\"}\n\xff\n{\"last\":true}";
        let whole = read(Format::Ndjson, false, text, text.len());
        let numbers: Vec<_> = whole.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 3, 5, 6, 7]);
        assert_eq!(whole[1].1, "not_json");
        assert_eq!(whole[3].1, "not_json");
        for size in 1..text.len() {
            assert_eq!(read(Format::Ndjson, false, text, size), whole, "{size}");
            assert_eq!(read(Format::Ndjson, true, &packed(text), size), whole);
        }
    }

    #[test]
    fn tables_are_the_same_however_the_bytes_come() {
        let text = "\u{feff}user,title,detail.Place,message\nada,\"Hello, \"\"Ada\"\"\",Cork,\"two\nlines\"\nbob,Hi,,\nonly one\neve,Hi,,x";
        let whole = read(Format::Csv, false, text.as_bytes(), text.len());
        let numbers: Vec<_> = whole.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [2, 3, 4, 5]);
        assert!(
            whole[0].1.contains(r#""title":"Hello, \"Ada\"""#),
            "{whole:?}"
        );
        assert!(whole[0].1.contains(r#"{"label":"Place","value":"Cork"}"#));
        assert!(!whole[1].1.contains("details") && !whole[1].1.contains("message"));
        assert_eq!(whole[2].1, "wrong_form");
        for size in 1..text.len() {
            assert_eq!(
                read(Format::Csv, false, text.as_bytes(), size),
                whole,
                "{size}"
            );
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_one_is_read() {
        let long = "x".repeat(MAX_LINE + 10);
        let text = format!("{long}\n{{}}\n");
        let said = read(Format::Ndjson, false, text.as_bytes(), 1000);
        assert_eq!(said, [(1, "too_long".to_owned()), (2, "{}".to_owned())]);
        let text = format!("user,title\n{long},a\nbob,b\n{long}");
        for size in [999, text.len()] {
            let said = read(Format::Csv, false, text.as_bytes(), size);
            assert_eq!(said.len(), 3, "{size}");
            assert_eq!((said[0].0, said[0].1.as_str()), (2, "too_long"));
            assert!(said[1].1.contains("bob"));
            assert_eq!((said[2].0, said[2].1.as_str()), (4, "too_long"));
        }
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused() {
        let mut lines = Lines::new(Format::Ndjson, true);
        assert!(
            lines
                .feed(b"this is no gzip at all", &mut Vec::new())
                .is_err()
        );
        let mut half = packed(b"{}\n{}\n");
        half.truncate(half.len() - 6);
        let mut lines = Lines::new(Format::Ndjson, true);
        lines.feed(&half, &mut Vec::new()).unwrap();
        assert!(lines.finish(&mut Vec::new()).is_err());
    }

    #[test]
    fn what_unpacks_to_far_too_much_is_refused_before_it_is_all_there() {
        let bomb = packed(&vec![b'\n'; 24 * 1024 * 1024]);
        let mut lines = Lines::new(Format::Ndjson, true);
        let portion = lines.portion();
        let mut refused = false;
        for part in bomb.chunks(portion) {
            let mut found = Vec::new();
            if lines.feed(part, &mut found).is_err() {
                refused = true;
                break;
            }
        }
        assert!(
            refused && lines.unpacked < 20 * 1024 * 1024,
            "{}",
            lines.unpacked
        );
    }

    #[test]
    fn a_table_needs_a_header_of_known_columns() {
        let mut lines = Lines::new(Format::Csv, false);
        assert!(lines.feed(b"user,colour\n", &mut Vec::new()).is_err());
        let mut lines = Lines::new(Format::Csv, false);
        assert!(lines.feed(b"user,external_id\n", &mut Vec::new()).is_err());
        let mut lines = Lines::new(Format::Csv, false);
        assert!(lines.finish(&mut Vec::new()).is_err());
    }
}
