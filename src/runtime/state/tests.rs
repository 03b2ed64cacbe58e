// SPDX-License-Identifier: Apache-2.0
//! Every recurrence, in batches of requests of any length and cut into steps, against its definition
//! token by token in float64.

use super::*;
use crate::runtime::testing::{Random, cpu, difference, floats, values};

const SLOTS: i32 = 7;
const GROUPS: usize = 2;
const HEADS: usize = 4;
const KEYS: usize = 5;
const VALUES: usize = 3;

/// An operand: elements of a token, or of all tokens together.
#[derive(Clone, Copy)]
enum Size {
    Token(&'static [usize]),
    Whole(&'static [usize]),
}

/// A recurrence, its operands with the range of their elements, and a state's shape.
struct Case {
    function: Recurrence,
    operands: Vec<(Size, f32, f32)>,
    state: &'static [usize],
}

fn cases() -> Vec<Case> {
    use Recurrence::*;
    use Size::*;
    let keys = (Token(&[GROUPS, KEYS]), -0.6, 0.6);
    let inputs = (Token(&[HEADS, VALUES]), -1.0, 1.0);
    let decay = (Token(&[HEADS]), -3.0, 0.0);
    let beta = (Token(&[HEADS]), 0.0, 1.0);
    let delta = |decay| vec![keys, keys, inputs, decay, beta];
    vec![
        Case {
            function: CausalConv,
            operands: vec![(Token(&[6]), -1.0, 1.0), (Whole(&[6, 4]), -1.0, 1.0)],
            state: &[3, 6],
        },
        Case {
            function: LinearScan,
            operands: vec![keys, keys, inputs, decay],
            state: &[HEADS, VALUES, KEYS],
        },
        Case {
            function: DeltaScan,
            operands: delta(decay),
            state: &[HEADS, VALUES, KEYS],
        },
        Case {
            function: DeltaScan,
            operands: delta((Token(&[HEADS, KEYS]), -20.0, 0.0)),
            state: &[HEADS, VALUES, KEYS],
        },
        Case {
            function: SelectiveScan,
            operands: vec![
                (Token(&[6]), -1.0, 1.0),
                (Token(&[6]), 0.0, 2.0),
                (Whole(&[6, KEYS]), -3.0, 0.0),
                (Token(&[KEYS]), -1.0, 1.0),
                (Token(&[KEYS]), -1.0, 1.0),
            ],
            state: &[6, KEYS],
        },
    ]
}

/// One token by the definition: its result, and the state after it.
fn define(case: &Case, operands: &[&[f32]], state: &mut [f64]) -> Vec<f64> {
    let at = |operand: usize, index: usize| f64::from(operands[operand][index]);
    match case.function {
        Recurrence::CausalConv => {
            let (channels, width) = (6, 4);
            let mut inputs = state.to_vec();
            inputs.extend((0..channels).map(|channel| at(0, channel)));
            state.copy_from_slice(&inputs[channels..]);
            let tap =
                |channel, tap| inputs[tap * channels + channel] * at(1, channel * width + tap);
            let sum = |channel| (0..width).map(|index| tap(channel, index)).sum();
            (0..channels).map(sum).collect()
        }
        Recurrence::SelectiveScan => {
            let mut result = vec![0.0; 6];
            for (channel, result) in result.iter_mut().enumerate() {
                for key in 0..KEYS {
                    let cell = &mut state[channel * KEYS + key];
                    let dt = at(1, channel);
                    *cell *= (dt * at(2, channel * KEYS + key)).exp();
                    *cell += dt * at(0, channel) * at(3, key);
                    *result += *cell * at(4, key);
                }
            }
            result
        }
        Recurrence::LinearScan | Recurrence::DeltaScan => {
            let is_delta = case.function == Recurrence::DeltaScan;
            let per_channel = operands[3].len() > HEADS;
            let mut result = Vec::new();
            for head in 0..HEADS {
                let key = |index| at(1, head * GROUPS / HEADS * KEYS + index);
                let query = |index| at(0, head * GROUPS / HEADS * KEYS + index);
                for value in 0..VALUES {
                    let row = &mut state[(head * VALUES + value) * KEYS..][..KEYS];
                    for (index, cell) in row.iter_mut().enumerate() {
                        let decay = if per_channel {
                            head * KEYS + index
                        } else {
                            head
                        };
                        *cell *= at(3, decay).exp();
                    }
                    let seen: f64 = (0..KEYS).map(|index| row[index] * key(index)).sum();
                    let input = at(2, head * VALUES + value);
                    let change = if is_delta {
                        at(4, head) * (input - seen)
                    } else {
                        input
                    };
                    (0..KEYS).for_each(|index| row[index] += change * key(index));
                    result.push((0..KEYS).map(|index| row[index] * query(index)).sum());
                }
            }
            result
        }
    }
}

/// A request: its tokens' operands, the slot it reads in the first step, and its state.
struct Request {
    operands: Vec<Vec<f32>>,
    slot: i32,
    done: usize,
    state: Vec<f64>,
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn shape(first: usize, rest: &[usize]) -> Vec<i32> {
    let rest = rest.iter().map(|size| *size as i32);
    std::iter::once(first as i32).chain(rest).collect()
}

/// Runs requests in steps of these lengths: `steps[step][request]` tokens.
fn check(case: &Case, steps: &[&[usize]], padding: usize) {
    let (mlx, mut random) = (cpu(), Random(11));
    let whole: Vec<Vec<f32>> = case
        .operands
        .iter()
        .map(|(size_of, low, high)| match size_of {
            Size::Whole(shape) => draw(&mut random, size(shape), *low, *high),
            Size::Token(_) => Vec::new(),
        })
        .collect();
    let totals = (0..steps[0].len()).map(|request| steps.iter().map(|step| step[request]).sum());
    let mut requests: Vec<Request> = totals
        .enumerate()
        .map(|(index, total): (usize, usize)| Request {
            operands: case
                .operands
                .iter()
                .map(|(size_of, low, high)| match size_of {
                    Size::Token(shape) => draw(&mut random, total * size(shape), *low, *high),
                    Size::Whole(_) => Vec::new(),
                })
                .collect(),
            slot: index as i32 + 1,
            done: 0,
            state: vec![0.0; size(case.state)],
        })
        .collect();
    // What was there before must not matter.
    let full = vec![f32::NAN; SLOTS as usize * size(case.state)];
    let mut cache = floats(&full, &shape(SLOTS as usize, case.state));
    for step in steps {
        let mut metadata = StateMetadata {
            query_start_loc: vec![0],
            ..StateMetadata::default()
        };
        let mut operands: Vec<Vec<f32>> = whole.clone();
        let mut expected = Vec::new();
        for (request, count) in requests.iter_mut().zip(*step) {
            let end = metadata.query_start_loc.last().unwrap() + *count as i32;
            metadata.query_start_loc.push(end);
            metadata
                .read_slots
                .push(if request.done == 0 { -1 } else { request.slot });
            metadata.write_slots.push(request.slot);
            for token in request.done..request.done + count {
                let mut of_token: Vec<&[f32]> = Vec::new();
                for (index, (size_of, ..)) in case.operands.iter().enumerate() {
                    of_token.push(match size_of {
                        Size::Token(shape) => {
                            let width = size(shape);
                            &request.operands[index][token * width..][..width]
                        }
                        Size::Whole(_) => &whole[index],
                    });
                    if let Size::Token(_) = size_of {
                        operands[index].extend(of_token[index]);
                    }
                }
                expected.extend(define(case, &of_token, &mut request.state));
            }
            request.done += count;
        }
        let num_tokens = *metadata.query_start_loc.last().unwrap() as usize + padding;
        metadata.check(num_tokens, SLOTS as usize).unwrap();
        let arrays: Vec<Array> = case
            .operands
            .iter()
            .zip(&mut operands)
            .map(|((size_of, ..), values)| match size_of {
                Size::Token(of_token) => {
                    values.resize(num_tokens * size(of_token), 0.25);
                    floats(values, &shape(num_tokens, of_token))
                }
                Size::Whole(of_all) => floats(values, &shape(of_all[0], &of_all[1..])),
            })
            .collect();
        let batches = Batches::new(&metadata, num_tokens).unwrap();
        let arrays: Vec<&Array> = arrays.iter().collect();
        let (result, after) = run(&mlx, case.function, &batches, &arrays, &cache).unwrap();
        assert_eq!(result.shape()[0], num_tokens as i32);
        let found = values(&mlx, &result);
        let apart = difference(&found[..expected.len()], &expected);
        assert!(apart < 2e-5, "{:?} {step:?}: {apart}", case.function);
        cache = after;
    }
    let width = size(case.state);
    let kept = values(&mlx, &cache);
    for request in &requests {
        let found = &kept[request.slot as usize * width..][..width];
        let apart = difference(found, &request.state);
        assert!(apart < 2e-5, "state of {:?}: {apart}", case.function);
    }
    assert!(
        kept[..width].iter().all(|value| value.is_nan()),
        "slot 0 was written"
    );
}

fn draw(random: &mut Random, count: usize, low: f32, high: f32) -> Vec<f32> {
    let unit = |_| (random.unit() + 1.0) / 2.0;
    (0..count)
        .map(unit)
        .map(|u| low + u * (high - low))
        .collect()
}

#[test]
fn one_request_in_one_step_equals_the_definition() {
    for case in cases() {
        for length in [1, 2, 15, 16, 17, 64, 65, 150] {
            check(&case, &[&[length]], 0);
        }
    }
}

#[test]
fn a_request_in_chunks_and_decoded_equals_the_definition() {
    for case in cases() {
        check(&case, &[&[2], &[1], &[70], &[1], &[1], &[3]], 0);
    }
}

#[test]
fn mixed_batches_equal_the_definition() {
    for case in cases() {
        let steps: [&[usize]; 4] = [
            &[5, 3, 40, 1, 0],
            &[1, 1, 1, 1, 1],
            &[1, 7, 1, 1, 100],
            &[1, 1, 1, 1, 1],
        ];
        check(&case, &steps, 0);
        check(&case, &steps, 3);
    }
}

#[test]
fn equal_keys_do_not_blow_the_triangular_system_up() {
    let mlx = cpu();
    let ones = vec![1.0; 64 * 64];
    let strict = mlx.tril(&floats(&ones, &[1, 1, 64, 64]), -1).unwrap();
    let inverse = values(&mlx, &delta::unit_inverse(&mlx, &strict, 64).unwrap());
    for (index, found) in inverse.iter().enumerate() {
        let (row, column) = (index / 64, index % 64);
        let expected = match row - column.min(row) {
            0 if row == column => 1.0,
            1 => -1.0,
            _ => 0.0,
        };
        assert!((found - expected).abs() < 1e-6, "{row} {column}: {found}");
    }
}

#[test]
fn another_slot_may_be_written_than_was_read() {
    let (mlx, cases) = (cpu(), cases());
    let case = &cases[0];
    let before: Vec<f32> = (0..SLOTS as usize * 18).map(|index| index as f32).collect();
    let cache = floats(&before, &[SLOTS, 3, 6]);
    let metadata = StateMetadata {
        query_start_loc: vec![0, 1],
        read_slots: vec![2],
        write_slots: vec![5],
    };
    let batches = Batches::new(&metadata, 1).unwrap();
    let (x, weight) = (floats(&[9.0; 6], &[1, 6]), floats(&[1.0; 24], &[6, 4]));
    let operands = [&x, &weight];
    let (_, after) = run(&mlx, case.function, &batches, &operands, &cache).unwrap();
    let after = values(&mlx, &after);
    assert_eq!(after[5 * 18], f64::from(before[2 * 18 + 6]));
    assert_eq!(after[5 * 18 + 12], 9.0);
    assert_eq!(
        after[2 * 18..3 * 18],
        before[2 * 18..3 * 18]
            .iter()
            .map(|x| f64::from(*x))
            .collect::<Vec<_>>()
    );
}

#[test]
fn slots_and_rows_are_checked() {
    let good = StateMetadata {
        query_start_loc: vec![0, 2, 3],
        read_slots: vec![-1, 4],
        write_slots: vec![1, 4],
    };
    good.check(3, 5).unwrap();
    let refused = |change: fn(&mut StateMetadata), expected: &str| {
        let mut metadata = good.clone();
        change(&mut metadata);
        let error = metadata.check(3, 5).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(|m| m.read_slots[1] = 5, "request 1 reads slot 5 of 5");
    refused(|m| m.read_slots[0] = -2, "request 0 reads slot -2");
    refused(|m| m.write_slots[0] = -1, "request 0 writes slot -1");
    refused(|m| m.write_slots[0] = 4, "as another does");
    refused(|m| m.query_start_loc[2] = 4, "does not rise");
    refused(|m| m.query_start_loc = vec![0, 3], "2 starts");
}
