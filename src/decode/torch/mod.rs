//! Networks in libtorch.
//!
//! Shapes are fixed by how many images and ranks an evaluation covers; places and what is seen travel as tensors.
//!
//! A program that looks at rings takes either one rank of any slots (a step), or as many consecutive ranks of each of some
//! consecutive slots. One that works on memories takes any rows.
//!
//! Batch invariance: libtorch's matrix products give bit-identical rows only from some number of rows on, since fewer are
//! multiplied by code that sums in another order. A step over rings therefore runs over the slots 0..n for the least
//! allowed n, wanted or not; slots nobody wants write to a spare place that nobody sees, and those behind the last that is
//! wanted do not look where n is the least and a trial shows that the bits of the others stay. Which n are allowed is found
//! by trying too. Rows over memories are padded likewise and multiplied piece by piece; where a trial shows that the bits of
//! a product depend on the place of a row in its piece, it is written as sums instead. Functions that libtorch does not
//! compute to the last bit alike in vectors and in what is left over are taken row by row.

mod memories;
mod pointwise;
mod product;
mod rings;

use std::fmt;

use tch::kind::Element;
use tch::{Device, Kind, TchError, Tensor};

use self::memories::{Named, Store};
use self::pointwise::{activate, cell, gate};
use self::product::Product;
use self::rings::{Ring, Window, Write, look, show, store};
use super::op::{Attention, Linear, Normalisation, Op, Part};
use super::program::{Memory, NOWHERE, Needs, Network, Program, ProgramId, Register};
use super::{Decoder, Row, Rows, check_memory, state_bytes};
use crate::model::{ModelError, Slot};
use crate::spec::Precision;

/// Steps are tried at multiples of this many slots. Below four rows, libtorch multiplies matrices by other code.
const BUCKET: usize = 4;

/// What the rows of an evaluation bring.
struct Feed {
    /// How many there are, those that nobody wants included.
    rows: i64,
    /// Rows of the tables, as many for each row.
    inputs: Tensor,
    numbers: Tensor,
    reach: Reach,
}

impl Feed {
    fn new(rows: usize, inputs: &[i64], numbers: &[f32], reach: Reach, device: Device) -> Result<Self, TchError> {
        let (inputs, numbers) = (on(device, inputs)?, on(device, numbers)?);
        Ok(Self { rows: rows as i64, inputs, numbers, reach })
    }
}

/// What the rows of an evaluation reach of the state.
enum Reach {
    Rings(Window),
    Memories(Named),
}

/// A network and the state of its slots.
pub struct Torch {
    programs: Vec<Program>,
    /// For each program and operation, the registers that nothing reads after it.
    last_reads: Vec<Vec<Vec<Register>>>,
    precision: Precision,
    device: Device,
    rings: Vec<Ring>,
    memories: Vec<Store>,
    slots: u32,
    /// Slots rounded up to whole buckets.
    rows: usize,
    /// Whether rows are taken as they come, and may have other bits with others.
    parallel: bool,
    /// For each program, the slots a step takes at least; over memories, what its rows are padded to a multiple of.
    smallest_buckets: Vec<usize>,
    /// Whether attention over fewer slots than the least of a step leaves the bits of those; steps of more look at all of
    /// theirs, of which at most three are not wanted.
    attention_is_invariant: bool,
    /// For each program and operation, the product it is.
    products: Vec<Vec<Option<Product>>>,
}

impl fmt::Debug for Torch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Torch").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Torch {
    /// A decoder of `network` for `slots` images, whose steps have the same bits whichever rows they are taken with.
    ///
    /// # Errors
    /// There is no memory for its state.
    pub fn new(network: &Network, slots: u32) -> Result<Self, ModelError> {
        let _guard = tch::no_grad_guard();
        let programs = network.programs.iter().map(share).collect();
        let mut decoder =
            Self::with_state(programs, &network.memories, &network.rings, (network.precision, network.device), slots)?;
        decoder.smallest_buckets = (0..decoder.programs.len())
            .map(|program| decoder.find_smallest_bucket(program))
            .collect::<Result<_, _>>()?;
        decoder.parallel = false;
        let programs = decoder.programs.iter().zip(&mut decoder.products).zip(&mut decoder.smallest_buckets);
        for ((_, products), smallest) in programs.filter(|((program, _), _)| program.needs.ring == 0) {
            for product in products.iter_mut().flatten() {
                *smallest = product.settle()?.max(*smallest);
            }
        }
        Ok(decoder)
    }

    /// As [`new`](Self::new), for passes that take whatever rows are at hand: nothing is padded, and the bits of a row may
    /// depend on its neighbours.
    ///
    /// # Errors
    /// There is no memory for its state.
    pub fn parallel(network: &Network, slots: u32) -> Result<Self, ModelError> {
        let _guard = tch::no_grad_guard();
        let programs = network.programs.iter().map(share).collect();
        Self::with_state(programs, &network.memories, &network.rings, (network.precision, network.device), slots)
    }

    /// The same as if the trial had found that the bits of attention depend on the slots that look.
    #[cfg(test)]
    pub(super) fn all_looking(mut self) -> Self {
        self.attention_is_invariant = false;
        self
    }

    fn with_state(
        programs: Vec<Program>,
        memories: &[(u32, u32)],
        rings: &[(Attention, u32)],
        (precision, device): (Precision, Device),
        slots: u32,
    ) -> Result<Self, ModelError> {
        // A GPU promises nothing that it does not have.
        if device == Device::Cpu {
            check_memory(state_bytes(memories, rings, Precision::F32), slots)?;
        }
        let rows = (slots as usize).max(1).next_multiple_of(BUCKET);
        let rings = rings.iter().map(|&(attention, places)| {
            let zeros = |width: u32| {
                let shape = [rows as i64, i64::from(attention.heads), i64::from(places) + 1, i64::from(width)];
                Tensor::f_zeros(shape, (Kind::Float, device))
            };
            Ok(Ring { keys: zeros(attention.head_key)?, values: zeros(attention.head_value)?, places, attention })
        });
        let memories = memories.iter().map(|&(width, places)| Store::new(width, places, slots, device));
        let product = |op: &Op| match op {
            Op::Linear { linear, .. } => Product::new(linear).map(Some),
            _ => Ok(None),
        };
        let products = programs.iter().map(|program| program.ops.iter().map(product).collect());
        Ok(Self {
            last_reads: programs.iter().map(Program::last_reads).collect(),
            rings: rings.collect::<Result<_, TchError>>()?,
            memories: memories.collect::<Result<_, TchError>>()?,
            smallest_buckets: vec![BUCKET; programs.len()],
            attention_is_invariant: true,
            products: products.collect::<Result<_, TchError>>()?,
            programs,
            precision,
            device,
            slots,
            rows,
            parallel: true,
        })
    }

    /// The least number of slots from which on all give the same bits in every row of `program`, for rows that hold the
    /// same.
    fn find_smallest_bucket(&mut self, program: usize) -> Result<usize, ModelError> {
        let Some(needs) = self.programs.get(program).map(|program| program.needs.clone()) else { return Ok(BUCKET) };
        if !needs.looks {
            return Ok(BUCKET);
        }
        self.fill()?;
        let (mut smallest, mut reference) = (self.rows, None);
        for bucket in (BUCKET..=self.rows).rev().step_by(BUCKET) {
            let rows = self.trial(program, &needs, bucket, bucket)?;
            let reference = reference.get_or_insert_with(|| rows.first().cloned().unwrap_or_default());
            if rows.iter().any(|row| row != reference) {
                break;
            }
            smallest = bucket;
        }
        for looking in 1..smallest {
            if !self.attention_is_invariant {
                break;
            }
            let rows = self.trial(program, &needs, smallest, looking)?;
            self.attention_is_invariant = rows.iter().take(looking).all(|row| Some(row) == reference.as_ref());
        }
        self.forget(0, self.rows as i64)?;
        Ok(smallest)
    }

    /// The bits of each row of a step of `bucket` slots that hold the same, the first `looking` of which look.
    fn trial(
        &mut self,
        program: usize,
        needs: &Needs,
        bucket: usize,
        looking: usize,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let spare = i64::from(needs.ring);
        let window = Window {
            first: 0,
            images: bucket as i64,
            looking: looking as i64,
            ranks: 1,
            write: Write::Each(vec![spare; bucket]),
            mask: Tensor::f_zeros([looking as i64, 1, spare + 1], (Kind::Float, self.device))?,
        };
        // The first row of the table, for every image.
        let numbers = vec![0.5; bucket * needs.numbers as usize];
        let feed = Feed::new(bucket, &vec![0; bucket], &numbers, Reach::Rings(window), self.device)?;
        let mut out = vec![0f32; bucket * needs.width];
        if let Some(result) = self.evaluate(program, feed)? {
            result.f_copy_data(&mut out, bucket * needs.width)?;
        }
        let bits = |row: &[f32]| row.iter().map(|number| number.to_bits()).collect();
        Ok(out.chunks_exact(needs.width.max(1)).map(bits).collect())
    }

    /// Fills every image with the same made-up keys and values.
    fn fill(&mut self) -> Result<(), TchError> {
        for tensor in self.rings.iter_mut().flat_map(|ring| [&mut ring.keys, &mut ring.values]) {
            let one = tensor.f_narrow(0, 0, 1)?;
            let length = i64::try_from(one.numel()).unwrap_or(i64::MAX);
            let pattern = Tensor::f_arange(length, (Kind::Float, self.device))?
                .f_mul_scalar(0.7)?
                .f_cos()?
                .f_view(one.size().as_slice())?;
            tensor.f_copy_(&pattern.f_expand_as(&*tensor)?)?;
        }
        Ok(())
    }

    fn forget(&mut self, first: i64, images: i64) -> Result<(), TchError> {
        for tensor in self.rings.iter_mut().flat_map(|ring| [&mut ring.keys, &mut ring.values]) {
            let _ = tensor.f_narrow(0, first, images)?.f_zero_()?;
        }
        Ok(())
    }

    /// One rank of each of `rows`, whose slots are distinct.
    fn step(&mut self, program: usize, rows: &[Row<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let highest = rows.iter().map(|row| row.slot as usize).max().unwrap_or(0);
        let smallest = self.smallest_buckets.get(program).copied().unwrap_or(BUCKET);
        let bucket = (highest + 1).next_multiple_of(BUCKET).max(smallest);
        let spare = self.programs.get(program).map_or(0, |program| program.needs.ring);
        let ring = spare as usize + 1;
        let [each, numbers_each] = rows.first().map_or([0, 0], |row| [row.inputs.len(), row.numbers.len()]);
        let mut inputs = vec![0i64; bucket * each];
        let mut numbers = vec![0f32; bucket * numbers_each];
        let mut places = vec![i64::from(spare); bucket];
        let looking = if self.attention_is_invariant && bucket == smallest { highest + 1 } else { bucket };
        let mut mask = vec![f32::NEG_INFINITY; looking * ring];
        // What nobody wants sees the spare place alone.
        mask.iter_mut().skip(spare as usize).step_by(ring).for_each(|seen| *seen = 0.0);
        for row in rows {
            let slot = row.slot as usize;
            if let Some(place) = places.get_mut(slot) {
                *place = i64::from(row.place);
            }
            inputs.iter_mut().skip(slot * each).zip(row.inputs).for_each(|(to, &input)| *to = i64::from(input));
            numbers.iter_mut().skip(slot * numbers_each).zip(row.numbers).for_each(|(to, &number)| *to = number);
            if let Some(mask) = mask.get_mut(slot * ring..(slot + 1) * ring) {
                show(row, mask);
                mask.iter_mut().skip(spare as usize).for_each(|seen| *seen = f32::NEG_INFINITY);
            }
        }
        let window = Window {
            first: 0,
            images: bucket as i64,
            looking: looking as i64,
            ranks: 1,
            write: Write::Each(places),
            mask: on(self.device, &mask)?.f_view([looking as i64, 1, ring as i64])?,
        };
        let feed = Feed::new(bucket, &inputs, &numbers, Reach::Rings(window), self.device)?;
        let Some(result) = self.evaluate(program, feed)? else { return Ok(()) };
        let wanted: Vec<i64> = rows.iter().map(|row| i64::from(row.slot)).collect();
        Ok(result.f_index_select(0, &on(self.device, &wanted)?)?.f_copy_data(out, out.len())?)
    }

    /// Consecutive ranks of each of some consecutive slots.
    fn span(&mut self, program: usize, rows: &[Row<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let unfit = || ModelError::Step("rows are neither one a slot nor spans of equal length".to_owned());
        let first = rows.first().ok_or_else(unfit)?;
        let ranks = rows.iter().take_while(|row| row.slot == first.slot).count();
        let ring = self.programs.get(program).map_or(0, |program| program.needs.ring) as usize + 1;
        let images = rows.len() / ranks.max(1);
        let fits = rows.iter().zip(rows.iter().cycle().take(ranks).cycle()).enumerate().all(|(index, (row, like))| {
            row.slot as usize == first.slot as usize + index / ranks
                && row.place == like.place
                && row.inputs.len() == first.inputs.len()
        });
        if !fits || images * ranks != rows.len() {
            return Err(unfit());
        }
        // Images differ in nothing that decides what is seen.
        let mut mask = vec![f32::NEG_INFINITY; ranks * ring];
        rows.iter().zip(mask.chunks_exact_mut(ring)).for_each(|(row, mask)| show(row, mask));
        let places: Vec<i64> = rows.iter().take(ranks).map(|row| i64::from(row.place)).collect();
        let window = Window {
            first: i64::from(first.slot),
            images: images as i64,
            looking: images as i64,
            ranks: ranks as i64,
            write: Write::Span(on(self.device, &places)?),
            mask: on(self.device, &mask)?.f_view([1, ranks as i64, ring as i64])?,
        };
        let inputs: Vec<_> = rows.iter().flat_map(|row| row.inputs).map(|&input| i64::from(input)).collect();
        let numbers: Vec<_> = rows.iter().flat_map(|row| row.numbers).copied().collect();
        let feed = Feed::new(rows.len(), &inputs, &numbers, Reach::Rings(window), self.device)?;
        let Some(result) = self.evaluate(program, feed)? else { return Ok(()) };
        Ok(result.f_copy_data(out, out.len())?)
    }

    /// Any rows of a program without rings.
    fn list(&mut self, program: usize, rows: &[Row<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let Some(first) = rows.first() else { return Ok(()) };
        let smallest = self.smallest_buckets.get(program).copied().unwrap_or(BUCKET);
        let count = if self.parallel { rows.len() } else { rows.len().next_multiple_of(smallest) };
        if rows.iter().any(|row| row.inputs.len() != first.inputs.len()) {
            return Err(ModelError::Step("rows have unequal numbers of inputs".to_owned()));
        }
        let mut inputs: Vec<i64> = rows.iter().flat_map(|row| row.inputs).map(|&input| i64::from(input)).collect();
        let mut numbers: Vec<f32> = rows.iter().flat_map(|row| row.numbers).copied().collect();
        let mut places: Vec<u32> = rows.iter().flat_map(|row| row.places).copied().collect();
        let mut slots: Vec<u32> = rows.iter().map(|row| row.slot).collect();
        // Rows that nobody wants read zeros and write to the spare row.
        inputs.resize(count * first.inputs.len(), 0);
        numbers.resize(count * first.numbers.len(), 0.0);
        places.resize(count * first.places.len(), NOWHERE);
        slots.resize(count, 0);
        let feed = Feed::new(count, &inputs, &numbers, Reach::Memories(Named::new(slots, places)), self.device)?;
        let Some(result) = self.evaluate(program, feed)? else { return Ok(()) };
        Ok(result.f_narrow(0, 0, rows.len() as i64)?.f_copy_data(out, out.len())?)
    }

    /// The output [rows, width], if the program has one.
    fn evaluate(&mut self, program: usize, mut feed: Feed) -> Result<Option<Tensor>, TchError> {
        let Self { programs, last_reads, products, memories, rings, precision, .. } = self;
        let found = programs.get(program).zip(last_reads.get(program)).zip(products.get(program));
        let Some(((program, last_reads), products)) = found else {
            return Err(TchError::Shape("there is no such program".to_owned()));
        };
        let mut registers: Vec<Option<Tensor>> = Vec::with_capacity(program.ops.len());
        for ((op, product), done) in program.ops.iter().zip(products).zip(last_reads) {
            let register = |register: Register| {
                let found = registers.get(register.0).and_then(Option::as_ref);
                found.ok_or_else(|| TchError::Shape(format!("{register:?} holds nothing")))
            };
            let result = match op {
                Op::Embed { table } => Some(embed(table, &feed)?),
                Op::Input => Some(feed.numbers.f_view([feed.rows, -1])?),
                Op::Linear { from, linear } => {
                    let product = product.as_ref().ok_or_else(|| TchError::Shape("no product".to_owned()))?;
                    let mut result = product.of(register(*from)?)?;
                    if linear.activation.is_some() {
                        result = result.f_relu_()?;
                    }
                    if let Some(residual) = linear.residual {
                        result = result.f_add_(register(residual)?)?;
                    }
                    Some(result)
                }
                Op::Normalise { from, normalisation } => {
                    let Normalisation { scale, shift, epsilon } = normalisation;
                    let from = register(*from)?;
                    Some(match shift {
                        Some(_) => from.f_layer_norm(scale.size(), Some(scale), shift.as_ref(), *epsilon, false)?,
                        None => from.f_rms_norm(scale.size(), Some(scale), *epsilon)?,
                    })
                }
                Op::Activate { from, activation } => Some(activate(register(*from)?, *activation)?),
                Op::Add { first, second } => Some(register(*first)?.f_add(register(*second)?)?),
                Op::Gate { from, passing, residual } => {
                    let mut gated = gate(register(*from)?, *passing)?;
                    if let Some(residual) = residual {
                        gated = gated.f_add_(register(*residual)?)?;
                    }
                    Some(gated)
                }
                Op::Cell { gates, carried } => Some(cell(register(*gates)?, register(*carried)?)?),
                Op::Gather { parts } => {
                    let mut gathered = Vec::with_capacity(parts.len());
                    for part in parts {
                        gathered.push(match (*part, &mut feed.reach) {
                            (Part::Register { register: from, width, .. }, _) if program.width(from) == Some(width) => {
                                register(from)?.shallow_clone()
                            }
                            (Part::Register { register: from, column, width }, _) => {
                                register(from)?.f_narrow(1, i64::from(column), i64::from(width))?
                            }
                            (Part::Memory { memory, taps, column, width }, Reach::Memories(named)) => {
                                find(memories, memory)?.recall(named, taps, i64::from(column), i64::from(width))?
                            }
                            _ => return Err(TchError::Shape("rows name no places".to_owned())),
                        });
                    }
                    if gathered.len() == 1 { gathered.pop() } else { Some(Tensor::f_cat(&gathered, 1)?) }
                }
                Op::Remember { from, memory, taps, column } => {
                    if let Reach::Memories(named) = &mut feed.reach {
                        find(memories, *memory)?.remember(register(*from)?, named, *taps, i64::from(*column))?;
                    }
                    None
                }
                Op::Store { from, ring } => {
                    if let (Some(ring), Reach::Rings(window)) = (rings.get(ring.0), &feed.reach) {
                        store(register(*from)?, ring, window, *precision)?;
                    }
                    None
                }
                Op::Look { from, ring, sight } => match (rings.get(ring.0), &feed.reach) {
                    (Some(ring), Reach::Rings(window)) => Some(look(register(*from)?, ring, *sight, window)?),
                    _ => None,
                },
            };
            registers.push(result);
            for register in done {
                if let Some(register) = registers.get_mut(register.0) {
                    *register = None;
                }
            }
        }
        Ok(program.output.and_then(|output| registers.get_mut(output.0)).and_then(Option::take))
    }
}

/// `numbers` on `device`.
fn on<T: Element>(device: Device, numbers: &[T]) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(numbers)?.f_to_device(device)
}

fn find(memories: &mut [Store], memory: Memory) -> Result<&mut Store, TchError> {
    memories.get_mut(memory.0).ok_or_else(|| TchError::Shape("there is no such memory".to_owned()))
}

/// The sum of the rows of `table` that are a row's inputs.
fn embed(table: &Tensor, feed: &Feed) -> Result<Tensor, TchError> {
    let rows = table.f_index_select(0, &feed.inputs)?;
    if feed.inputs.numel() as i64 == feed.rows {
        return Ok(rows);
    }
    rows.f_view([feed.rows, -1, table.size2()?.1])?.f_sum_dim_intlist([1i64].as_slice(), false, None)
}

/// The same program with handles of its own on the same tensors.
fn share(program: &Program) -> Program {
    Program {
        ops: program.ops.iter().map(share_op).collect(),
        widths: program.widths.clone(),
        output: program.output,
        needs: program.needs.clone(),
    }
}

fn share_op(op: &Op) -> Op {
    match op {
        Op::Embed { table } => Op::Embed { table: table.shallow_clone() },
        Op::Linear { from, linear } => {
            let Linear { weight, bias, activation, residual } = linear;
            let bias = bias.as_ref().map(Tensor::shallow_clone);
            let linear = Linear { weight: weight.shallow_clone(), bias, activation: *activation, residual: *residual };
            Op::Linear { from: *from, linear }
        }
        Op::Normalise { from, normalisation } => {
            let Normalisation { scale, shift, epsilon } = normalisation;
            let (scale, shift) = (scale.shallow_clone(), shift.as_ref().map(Tensor::shallow_clone));
            Op::Normalise { from: *from, normalisation: Normalisation { scale, shift, epsilon: *epsilon } }
        }
        Op::Input => Op::Input,
        Op::Activate { from, activation } => Op::Activate { from: *from, activation: *activation },
        Op::Add { first, second } => Op::Add { first: *first, second: *second },
        Op::Gate { from, passing, residual } => Op::Gate { from: *from, passing: *passing, residual: *residual },
        Op::Cell { gates, carried } => Op::Cell { gates: *gates, carried: *carried },
        Op::Gather { parts } => Op::Gather { parts: parts.clone() },
        Op::Remember { from, memory, taps, column } => {
            Op::Remember { from: *from, memory: *memory, taps: *taps, column: *column }
        }
        Op::Store { from, ring } => Op::Store { from: *from, ring: *ring },
        Op::Look { from, ring, sight } => Op::Look { from: *from, ring: *ring, sight: *sight },
    }
}

impl Decoder for Torch {
    fn clear(&mut self, slot: Slot) -> Result<(), ModelError> {
        if slot.0 >= self.slots {
            return Err(ModelError::Step(format!("there is no {slot:?}")));
        }
        let _guard = tch::no_grad_guard();
        self.memories.iter().try_for_each(|store| store.clear(slot.0))?;
        Ok(self.forget(i64::from(slot.0), 1)?)
    }

    fn run(&mut self, program: ProgramId, rows: &Rows, out: &mut [f32]) -> Result<(), ModelError> {
        let needs = self.programs.get(program.0).map(|program| &program.needs);
        rows.check(needs, self.slots, out.len())?;
        if rows.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let all: Vec<_> = rows.iter().collect();
        if needs.is_none_or(|needs| needs.ring == 0) {
            return self.list(program.0, &all, out);
        }
        let mut seen = vec![false; self.slots as usize];
        let distinct =
            all.iter().all(|row| seen.get_mut(row.slot as usize).is_some_and(|seen| !std::mem::replace(seen, true)));
        if distinct { self.step(program.0, &all, out) } else { self.span(program.0, &all, out) }
    }

    fn rows_are_invariant(&self) -> bool {
        false
    }

    fn another(&self, slots: u32) -> Result<Box<dyn Decoder>, ModelError> {
        let _guard = tch::no_grad_guard();
        let memories: Vec<_> = self.memories.iter().map(|store| (store.width, store.places)).collect();
        let rings: Vec<_> = self.rings.iter().map(|ring| (ring.attention, ring.places)).collect();
        let programs = self.programs.iter().map(share).collect();
        let another = Self::with_state(programs, &memories, &rings, (self.precision, self.device), slots)?;
        let share = |products: &Vec<Option<Product>>| products.iter().map(|p| p.as_ref().map(Product::share)).collect();
        let products = self.products.iter().map(share).collect();
        let smallest_buckets = self.smallest_buckets.clone();
        let Self { parallel, attention_is_invariant, .. } = *self;
        let mut another = Self { products, smallest_buckets, parallel, attention_is_invariant, ..another };
        // Which buckets of rings agree depends on the largest.
        if slots != self.slots {
            for program in 0..another.programs.len() {
                if another.programs.get(program).is_some_and(|program| program.needs.looks) {
                    let smallest = another.find_smallest_bucket(program)?;
                    another.smallest_buckets.get_mut(program).into_iter().for_each(|bucket| *bucket = smallest);
                }
            }
        }
        Ok(Box::new(another))
    }
}
