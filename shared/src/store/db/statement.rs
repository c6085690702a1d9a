//! One SQL text for two databases.
//!
//! A text is written once, with `$1` parameters, which both drivers read, over TEXT and BIGINT columns. What differs is
//! filled in from marks:
//!
//! | mark | PostgreSQL | SQLite |
//! |---|---|---|
//! | `{each:$1}` | `unnest(ARRAY(SELECT jsonb_array_elements($1::jsonb))) AS r(value)` | `json_each($1) AS r` |
//! | `{texts:$1}` | the same of `jsonb_array_elements_text` | `json_each($1) AS r` |
//! | `{in:$1}` | `= ANY(ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))` | `IN (SELECT value FROM json_each($1))` |
//! | `{among:$1 id}` | `= ANY(ARRAY(SELECT jsonb_array_elements($1::jsonb)->>'id'))` | `IS NOT NULL` |
//! | `{since:p.user_id p.id u.id $2}` | `(p.user_id, p.id) > (u.id, $2)` | `p.id > $2` |
//! | `{skip_locked}` | `FOR UPDATE SKIP LOCKED` | nothing: there is one writer |
//! | `{texts_as_s:$1}` | the same as `s(value)`, for a second one in a statement | `json_each($1) AS s` |
//! | `{lock}` | `FOR UPDATE` | nothing |
//! | `{rows:3 id line:int}` | `unnest((SELECT $3::text[]), (SELECT $4::bigint[])) AS r(id, line)` | a `VALUES` list of some of the rows, `AS r`, until all were given: a text says the same of each row, whatever stands beside it |
//! | `{share:p}` | `FOR SHARE OF p` | nothing |
//! | `{lock:p}` | `FOR UPDATE OF p` | nothing |
//!
//! A plan that PostgreSQL makes while a table is small is kept by its connection while the table grows, so a text leaves no choice but the right one:
//! rows are looked up by index from a short list. An array it takes for ten rows, a set of JSON elements for a hundred, which once was more than
//! there were pushes; `= ANY` is a condition of the index, `IN (SELECT …)` and `JOIN` are not, so that a table which is joined with `{each:$1}` is told
//! with `{among:…}` once more which rows are asked for; and `p.id > $2` beside `p.user_id = u.id` is an invitation to
//! read everybody's recent pushes by their identifiers. A column behind `|| ''` keeps a plan from an index that leaves all of a store's or a user's
//! rows, which of a few rows is as good as the right one, or from one whose order would serve a join, and a join from being turned round. An array given as it is tells how long it is: PostgreSQL
//! then takes a plan for this length to be cheaper than the one it keeps, and makes a new one each time. Behind a `SELECT` it has no length.

use std::sync::OnceLock;

/// SQLite gets rows in pieces of so many, and so meets the same few texts again and again: reading a text takes longer than what it does.
const PIECES: [usize; 7] = [1_000, 200, 64, 32, 16, 4, 1];

/// One SQL text, translated at its first use.
pub struct Statement {
    text: &'static str,
    long: bool,
    postgres: OnceLock<String>,
    sqlite: OnceLock<String>,
    /// The texts for each size of [`PIECES`].
    pieces: [OnceLock<String>; PIECES.len()],
    rows: OnceLock<Option<RowsMark>>,
}

/// Where a text stands in the program: it is a constant, and no other one stands there.
pub(super) type Place = (usize, usize);

pub(super) fn place(text: &'static str) -> Place {
    (text.as_ptr().addr(), text.len())
}

/// How so many rows are divided, and which of the [`PIECES`] each part is.
pub(super) fn pieces(rows: usize) -> impl Iterator<Item = (Piece, usize)> {
    let mut left = rows;
    PIECES.into_iter().enumerate().flat_map(move |(n, size)| {
        let times = left / size;
        left %= size;
        std::iter::repeat_n((Piece(n), size), times)
    })
}

/// One of the [`PIECES`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece(usize);

/// What the mark `{rows:…}` says.
pub(super) struct RowsMark {
    /// The number of its first parameter: it stands behind all others.
    first: usize,
    columns: Vec<&'static str>,
    pub(super) numbers: Vec<bool>,
}

impl RowsMark {
    fn of(text: &'static str) -> Option<Self> {
        let (_, mark) = text.split_once("{rows:")?;
        let (mark, _) = mark.split_once('}')?;
        let mut words = mark.split_whitespace();
        let first = words.next()?.parse().ok()?;
        let (columns, numbers) = words
            .map(|word| (word.trim_end_matches(":int"), word.ends_with(":int")))
            .unzip();
        Some(Self {
            first,
            columns,
            numbers,
        })
    }

    fn postgres(&self) -> String {
        let parameters: Vec<_> = (self.first..)
            .zip(&self.numbers)
            .map(|(n, number)| {
                let kind = if *number { "bigint" } else { "text" };
                format!("(SELECT ${n}::{kind}[])")
            })
            .collect();
        let names = self.columns.join(", ");
        format!("unnest({}) AS r({names})", parameters.join(", "))
    }

    fn sqlite(&self, rows: usize) -> String {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(rows * self.columns.len() * 6 + 200);
        for (n, name) in self.columns.iter().enumerate() {
            let lead = if n == 0 { "(SELECT" } else { "," };
            // Writing to a String cannot fail.
            write!(text, "{lead} column{} AS {name}", n + 1).ok();
        }
        text.push_str(" FROM (VALUES ");
        let row = vec!["?"; self.columns.len()].join(",");
        for n in 0..rows {
            text.push_str(if n == 0 { "(" } else { "),(" });
            text.push_str(&row);
        }
        text.push_str("))) AS r");
        text
    }
}

impl Statement {
    /// A text with the marks of this module.
    pub const fn new(text: &'static str) -> Self {
        Self::of(text, false)
    }

    /// The same, of one that looks at many rows though it is given few values.
    pub const fn long(text: &'static str) -> Self {
        Self::of(text, true)
    }

    const fn of(text: &'static str, long: bool) -> Self {
        Self {
            text,
            long,
            postgres: OnceLock::new(),
            sqlite: OnceLock::new(),
            pieces: [const { OnceLock::new() }; PIECES.len()],
            rows: OnceLock::new(),
        }
    }

    pub(super) fn place(&self) -> Place {
        place(self.text)
    }

    pub(super) fn is_long(&self) -> bool {
        self.long
    }

    pub(super) fn rows(&self) -> Option<&RowsMark> {
        self.rows.get_or_init(|| RowsMark::of(self.text)).as_ref()
    }

    pub(super) fn postgres(&self) -> &str {
        self.postgres.get_or_init(|| {
            let text = unfold(self.text, "{each:", |p| {
                format!("unnest(ARRAY(SELECT jsonb_array_elements({p}::jsonb))) AS r(value)")
            });
            let texts = |p: &str| format!("ARRAY(SELECT jsonb_array_elements_text({p}::jsonb))");
            let text = unfold(&text, "{texts:", |p| {
                format!("unnest({}) AS r(value)", texts(p))
            });
            let text = unfold(&text, "{texts_as_s:", |p| {
                format!("unnest({}) AS s(value)", texts(p))
            });
            let text = unfold(&text, "{in:", |p| format!("= ANY({})", texts(p)));
            let text = unfold(&text, "{among:", |words| {
                let (p, key) = words.split_once(' ').unwrap_or((words, "id"));
                format!("= ANY(ARRAY(SELECT jsonb_array_elements({p}::jsonb)->>'{key}'))")
            });
            let text = unfold(&text, "{since:", |words| {
                let words: Vec<_> = words.split(' ').collect();
                format!("({}) > ({})", words[..2].join(", "), words[2..].join(", "))
            });
            let text = unfold(&text, "{share:", |table| format!("FOR SHARE OF {table}"));
            let text = unfold(&text, "{lock:", |table| format!("FOR UPDATE OF {table}"));
            let text = unfold(&text, "{rows:", |_| {
                self.rows().map(RowsMark::postgres).unwrap_or_default()
            });
            text.replace("{skip_locked}", "FOR UPDATE SKIP LOCKED")
                .replace("{lock}", "FOR UPDATE")
        })
    }

    /// The text for SQLite, for this many rows.
    pub(super) fn for_rows(&self, piece: Piece) -> &str {
        self.pieces[piece.0].get_or_init(|| {
            let Some(mark) = self.rows() else {
                return self.sqlite().to_owned();
            };
            let rows = PIECES[piece.0];
            let text = moved(self.sqlite(), rows * mark.columns.len());
            unfold(&text, "{rows:", |_| mark.sqlite(rows))
        })
    }

    pub(super) fn sqlite(&self) -> &str {
        self.sqlite.get_or_init(|| {
            let text = unfold(self.text, "{each:", |p| format!("json_each({p}) AS r"));
            let text = unfold(&text, "{texts:", |p| format!("json_each({p}) AS r"));
            let text = unfold(&text, "{texts_as_s:", |p| format!("json_each({p}) AS s"));
            let text = unfold(&text, "{in:", |p| {
                format!("IN (SELECT value FROM json_each({p}))")
            });
            let text = unfold(&text, "{among:", |_| "IS NOT NULL".to_owned());
            let text = unfold(&text, "{since:", |words| {
                let words: Vec<_> = words.split(' ').collect();
                format!("{} > {}", words[1], words[3])
            });
            let text = unfold(&text, "{share:", |_| String::new());
            let text = unfold(&text, "{lock:", |_| String::new());
            text.replace("{skip_locked}", "").replace("{lock}", "")
        })
    }
}

/// The text with each parameter `$n` as `$n+by`. The values of rows have no names, which SQLite would look for in one long list, so that they come
/// first.
fn moved(text: &str, by: usize) -> String {
    let mut parts = text.split('$');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let number: usize = part[..digits].parse().unwrap_or(0);
        out.push('$');
        out.push_str(&(number + by).to_string());
        out.push_str(&part[digits..]);
    }
    out
}

fn unfold(text: &str, mark: &str, with: impl Fn(&str) -> String) -> String {
    let mut parts = text.split(mark);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (parameter, rest) = part.split_once('}').unwrap_or((part, ""));
        out.push_str(&with(parameter));
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Statement, pieces};

    #[test]
    fn marks_are_filled_in_for_each_database() {
        let s = Statement::new("SELECT 1 FROM {each:$2} JOIN {texts:$1} {skip_locked}");
        assert_eq!(
            s.postgres(),
            "SELECT 1 FROM unnest(ARRAY(SELECT jsonb_array_elements($2::jsonb))) AS r(value) \
             JOIN unnest(ARRAY(SELECT jsonb_array_elements_text($1::jsonb))) AS r(value) FOR UPDATE SKIP LOCKED"
        );
        assert_eq!(
            s.sqlite(),
            "SELECT 1 FROM json_each($2) AS r JOIN json_each($1) AS r "
        );
        let s = Statement::new(
            "SELECT 1 FROM p JOIN u ON {since:p.user_id p.id u.id $2} WHERE p.id {in:$1}",
        );
        assert_eq!(
            s.postgres(),
            "SELECT 1 FROM p JOIN u ON (p.user_id, p.id) > (u.id, $2) WHERE p.id = ANY(ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))"
        );
        assert_eq!(
            s.sqlite(),
            "SELECT 1 FROM p JOIN u ON p.id > $2 WHERE p.id IN (SELECT value FROM json_each($1))"
        );
        let s = Statement::new("SELECT 1 FROM p WHERE p.id {among:$1 id}");
        assert_eq!(
            s.postgres(),
            "SELECT 1 FROM p WHERE p.id = ANY(ARRAY(SELECT jsonb_array_elements($1::jsonb)->>'id'))"
        );
        assert_eq!(s.sqlite(), "SELECT 1 FROM p WHERE p.id IS NOT NULL");
        let s = Statement::new("SELECT id FROM {rows:2 id line:int} WHERE line > $1");
        assert_eq!(
            s.postgres(),
            "SELECT id FROM unnest((SELECT $2::text[]), (SELECT $3::bigint[])) AS r(id, line) WHERE line > $1"
        );
        let parts: Vec<_> = pieces(9).collect();
        let sizes: Vec<_> = parts.iter().map(|(_, size)| *size).collect();
        assert_eq!(sizes, [4, 4, 1]);
        assert_eq!(
            s.for_rows(parts[2].0),
            "SELECT id FROM (SELECT column1 AS id, column2 AS line FROM (VALUES (?,?))) AS r WHERE line > $3"
        );
        assert!(
            s.for_rows(parts[0].0)
                .contains("(VALUES (?,?),(?,?),(?,?),(?,?))")
        );
    }
}
