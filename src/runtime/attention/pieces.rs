// SPDX-License-Identifier: Apache-2.0
//! Cuts a step's queries into pieces and groups pieces of similar size, so that each group is one
//! padded batch.

use super::Metadata;
use lowering::ir::Float;
use lowering::plan::PromptSizes;
use std::ops::Range;

/// Where keys and values are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The paged cache, by block table.
    Cache { block_size: usize },
    /// The step's own rows: encoders keep no cache.
    Step,
}

/// What decides indices and masks. Layers of one kind share a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    pub source: Source,
    /// Whether requests that ask for it are causal; encoders never are.
    pub causal: bool,
    /// Tokens that a token sees on a side, itself included.
    pub sliding_window: Option<usize>,
    pub alibi_slopes: Option<Vec<Float>>,
    pub alibi_sqrt: bool,
    /// Rows of queries in a piece, at most; limits the memory of the scores.
    pub max_scores: Option<usize>,
    /// Whether `mx.fast` runs it, which takes other masks.
    pub fused: bool,
    /// Whether a kernel decodes it, which needs neither indices of keys nor masks.
    pub kernel: bool,
    /// Where a kernel may compute its prompts, what decides whether it does.
    pub prefill: Option<PromptSizes>,
}

/// Consecutive queries of one request and the keys that they may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub request: usize,
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Position of the first row in its request.
    pub position: usize,
    /// Positions of keys that any of the rows sees.
    pub keys: Range<usize>,
    /// Whether its tokens see only those before them and themselves.
    pub causal: bool,
    /// Positions whose tokens all see each other, where they meet the rows.
    pub spans: Vec<Range<usize>>,
}

/// Scores that are computed although masked are at most about as many as are needed, beyond this
/// many keys of padding.
const FREE_PADDING: usize = 128;

/// Fewest rows a piece is cut to.
const MIN_ROWS: usize = 16;

impl Piece {
    /// The rows `rows` of a request of `length` tokens, the first of them at `position`.
    fn new(
        kind: &Kind,
        metadata: &Metadata,
        request: usize,
        rows: Range<usize>,
        position: usize,
        length: usize,
    ) -> Piece {
        let causal = kind.causal && metadata.causal[request];
        let positions = position..position + rows.len();
        let spans = metadata.spans.iter().filter(|(of, ..)| *of == request);
        let spans: Vec<Range<usize>> = spans
            .map(|(_, first, last)| *first..last + 1)
            .filter(|span| span.start < positions.end && positions.start < span.end)
            .collect();
        let window = kind.sliding_window.unwrap_or(usize::MAX);
        let start = (positions.start + 1).saturating_sub(window);
        let end = if causal {
            positions.end
        } else {
            (positions.end - 1).saturating_add(window).min(length)
        };
        let start = spans.iter().map(|span| span.start).fold(start, usize::min);
        let end = spans
            .iter()
            .map(|span| span.end.min(length))
            .fold(end, usize::max);
        Piece {
            request,
            rows,
            position,
            keys: start..end,
            causal,
            spans,
        }
    }

    /// Whether the token at one position sees that at another.
    pub fn sees(&self, kind: &Kind, query: usize, key: usize) -> bool {
        let window = kind.sliding_window.unwrap_or(usize::MAX);
        let near = query.abs_diff(key) < window;
        (near && (key <= query || !self.causal))
            || self
                .spans
                .iter()
                .any(|span| span.contains(&query) && span.contains(&key))
    }
}

/// All pieces of a step, in the order of rows.
pub fn pieces(metadata: &Metadata, kind: &Kind) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for request in 0..metadata.num_reqs() {
        let rows = metadata.rows(request);
        let length = match kind.source {
            Source::Cache { .. } => metadata.seq_lens[request] as usize,
            Source::Step => rows.len(),
        };
        let context = length - rows.len();
        let most = match kind.max_scores {
            Some(scores) => (scores / length.max(1)).max(MIN_ROWS),
            None => usize::MAX,
        };
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start.saturating_add(most));
            let position = context + start - rows.start;
            pieces.push(Piece::new(
                kind,
                metadata,
                request,
                start..end,
                position,
                length,
            ));
            start = end;
        }
    }
    pieces
}

/// Groups pieces so that padding each group to its longest stays cheap. Order within a group and of
/// groups depends on the pieces alone.
pub fn groups(mut pieces: Vec<Piece>, max_scores: Option<usize>) -> Vec<Vec<Piece>> {
    // Longest first; the sort is stable, so equals stay in the order of rows.
    pieces.sort_by_key(|piece| {
        (
            std::cmp::Reverse(piece.rows.len()),
            std::cmp::Reverse(piece.keys.len()),
        )
    });
    let mut groups: Vec<Vec<Piece>> = Vec::new();
    for piece in pieces {
        if let Some(group) = groups.last_mut() {
            let rows = group[0].rows.len();
            let keys = group
                .iter()
                .map(|other| other.keys.len())
                .max()
                .unwrap_or(0);
            let widest = keys.max(piece.keys.len());
            let narrowest = group
                .iter()
                .map(|other| other.keys.len())
                .min()
                .unwrap_or(0)
                .min(piece.keys.len());
            let similar_rows = if rows == 1 {
                piece.rows.len() == 1
            } else {
                piece.rows.len() > 1
            } && piece.rows.len() * 2 >= rows;
            let similar_keys = widest <= 2 * narrowest + FREE_PADDING;
            let fits = max_scores.is_none_or(|most| {
                (group.len() + 1)
                    .saturating_mul(rows)
                    .saturating_mul(widest)
                    <= most.max(rows * widest)
            });
            if similar_rows && similar_keys && fits {
                group.push(piece);
                continue;
            }
        }
        groups.push(vec![piece]);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> Kind {
        Kind {
            source: Source::Cache { block_size: 4 },
            causal: true,
            sliding_window: None,
            alibi_slopes: None,
            alibi_sqrt: false,
            max_scores: None,
            fused: false,
            kernel: false,
            prefill: None,
        }
    }

    fn metadata(requests: &[(i32, i32)]) -> Metadata {
        let mut starts = vec![0];
        for (rows, _) in requests {
            starts.push(starts[starts.len() - 1] + rows);
        }
        Metadata {
            seq_lens: requests.iter().map(|(_, length)| *length).collect(),
            num_actual_tokens: starts[requests.len()] as usize,
            query_start_loc: starts,
            causal: vec![true; requests.len()],
            ..Metadata::default()
        }
    }

    #[test]
    fn a_window_limits_the_keys_of_a_piece() {
        let windowed = Kind {
            sliding_window: Some(3),
            ..kind()
        };
        let found = pieces(&metadata(&[(1, 10), (2, 2), (4, 9)]), &windowed);
        let keys: Vec<_> = found.iter().map(|piece| piece.keys.clone()).collect();
        assert_eq!(keys, [7..10, 0..2, 3..9]);
        let sees = |key| found[0].sees(&windowed, 9, key);
        assert!(sees(7) && !sees(6) && !sees(10));
    }

    #[test]
    fn long_prefills_are_cut_by_the_limit_of_scores() {
        let limited = Kind {
            max_scores: Some(40 * 32),
            ..kind()
        };
        let found = pieces(&metadata(&[(40, 40)]), &limited);
        let rows: Vec<_> = found.iter().map(|piece| piece.rows.clone()).collect();
        assert_eq!(rows, [0..32, 32..40]);
        assert_eq!(found[1].keys, 0..40);
    }

    #[test]
    fn decodes_form_one_group_and_very_different_lengths_do_not() {
        let found = groups(
            pieces(&metadata(&[(1, 10), (5, 5), (1, 90), (1, 4000)]), &kind()),
            None,
        );
        let requests: Vec<Vec<usize>> = found
            .iter()
            .map(|group| group.iter().map(|piece| piece.request).collect())
            .collect();
        assert_eq!(requests, [vec![1], vec![3], vec![2, 0]]);
    }
}
