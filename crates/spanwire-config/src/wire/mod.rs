//! The messages between a sender and a receiver, as bytes.
//!
//! Each message begins with version (u8, now 1), type (u8) and flags (u16); integers are big-endian, strings
//! have a u16 length and byte strings a u32 length. `docs/config-broadcast.md` has the fields of each and
//! examples, which a test compares with this code.
//!
//! Owns: the layout and its bounds. Never: meaning; an allocation that a peer's word alone asks for.

mod codec;
mod payload;
mod report;

use bytes::Bytes;

pub(crate) use codec::{Reader, Write};
pub(crate) use payload::Payload;
pub use payload::{decode_changes, decode_state, encode_changes, encode_state, snapshot_size};
pub use report::{MAX_RECORDS, NodeReport, Report, Said};

use crate::position::Signature;
use crate::{Base, ChainMark, Claim, ClusterId, Digest, Epoch, Head, Id, Position, ServerId};

/// Version of the messages.
pub const VERSION: u8 = 1;
/// Flag of a message whose receiver may ignore it if it does not know its type.
pub const OPTIONAL: u16 = 1;
/// Largest slice of a transfer, in bytes of payload: 64 KiB.
pub const SLICE: usize = 64 << 10;
/// Smallest `max_chunk` that a receiver may ask for: 4 KiB.
pub const MIN_CHUNK: u32 = 4 << 10;
/// Largest namespace name, in bytes.
pub const MAX_NAMESPACE: usize = 128;
/// Largest text of a refusal, in bytes.
pub const MAX_TEXT: usize = 1024;
/// Most labels of a node.
pub const MAX_LABELS: usize = 16;
/// Most namespaces that one message asks for or shows.
pub const MAX_WANTS: usize = 64;
/// Most HEADs in a beacon: a namespace has two while a rollout is open.
pub const MAX_HEADS: usize = 2 * MAX_WANTS;
/// Most bytes of a HELLO without its wants.
pub const MAX_HELLO: usize = 4 << 10;
const MAX_AUDIENCE: usize = 4 << 10;
/// Most servers from the authority to a relay, both included.
pub const MAX_PATH: usize = 8;
const MAX_ALTERNATES: usize = 8;

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They end too early.
    #[error("message ends too early")]
    Short,
    /// Something follows the message.
    #[error("bytes after the end of the message")]
    Trailing,
    /// A version that this side does not speak.
    #[error("version {0} is not spoken here")]
    Version(u8),
    /// A field is longer than it may be.
    #[error("{0} too long")]
    TooLong(&'static str),
    /// A field has a value that does not exist.
    #[error("bad value of {0}")]
    Value(&'static str),
    /// Keys do not rise.
    #[error("keys out of order")]
    Order,
}

type Result<T> = std::result::Result<T, DecodeError>;

/// An enum over one byte.
macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }
        impl $name {
            fn decode(r: &mut Reader<'_>) -> Result<Self> {
                match r.u8()? {
                    $($value => Ok($name::$variant),)*
                    _ => Err(DecodeError::Value(stringify!($name))),
                }
            }
        }
    };
}

byte_enum!(
    /// What a node has done with a revision.
    Level {
        /// It is verified and on disk.
        Stored = 1,
        /// Readers on the node see it.
        Visible = 2,
        /// The node's hook has acted on it.
        Applied = 3,
    }
);
byte_enum!(
    /// Why a node does not take a revision, or could not act on it.
    NackCode {
        /// A check in the node refused the content.
        Validator = 1,
        /// The node's check command refused the content.
        Check = 2,
        /// The node could not keep it.
        Storage = 3,
        /// Over the node's limits.
        TooLarge = 4,
        /// It is visible, but the hook failed.
        Hook = 5,
        /// It contradicts what the node holds: another incarnation, digest or chain.
        Conflict = 6,
    }
);
byte_enum!(
    /// What a server says of a namespace.
    NamespaceStatus {
        /// Served.
        Known = 1,
        /// Not for this node.
        Denied = 2,
        /// Does not exist here.
        Unknown = 3,
        /// Exists, but the authority has no state: its store is new, or gone. An operator begins.
        Vacant = 4,
        /// Not loaded yet; data will follow.
        Pending = 5,
    }
);
byte_enum!(
    /// What kind of node says HELLO.
    NodeKind {
        /// A replica.
        Replica = 1,
        /// A relay: what it holds it serves to others.
        Relay = 2,
    }
);
byte_enum!(
    /// Why a WANT is sent.
    WantReason {
        /// A further namespace, or a pipe that becomes the one in use.
        New = 1,
        /// What came does not have the digest that its HEAD names.
        Digest = 2,
        /// Offer again what was refused.
        Retry = 3,
        /// Anything else, such as a gap.
        Other = 4,
    }
);
byte_enum!(
    /// Why a pipe is left.
    GoodbyeCode {
        /// Another version of the protocol.
        Version = 1,
        /// Another cluster.
        Cluster = 2,
        /// Not allowed.
        Denied = 3,
        /// The servers form a loop, or a path that is too long.
        Loop = 4,
        /// Too busy now.
        Busy = 5,
        /// Over a limit.
        Limits = 6,
        /// The node's boot is below one known; `detail` has that.
        StaleBoot = 7,
        /// The process ends.
        Closing = 8,
    }
);

/// HELLO, up: who a node is and what it wants. The first message of a pipe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The node; lives in its state folder.
    pub node: Id,
    /// Start number of the node: high 32 bits counted on disk, low 32 bits random.
    pub boot: u64,
    /// Rises with every HELLO of a boot.
    pub attempt: u32,
    /// Replica or relay.
    pub kind: NodeKind,
    /// For people.
    pub name: String,
    /// At most 16 pairs.
    pub labels: Vec<(String, String)>,
    /// Lowest version that it speaks.
    pub proto_min: u8,
    /// Highest version that it speaks.
    pub proto_max: u8,
    /// Its cluster.
    pub cluster: ClusterId,
    /// How many payload bytes may be on their way to it, in bytes.
    pub window: u32,
    /// Largest slice that it takes, in bytes.
    pub max_chunk: u32,
    /// Namespaces that it wants over this pipe.
    pub wants: Vec<Want>,
}

/// What a node wants of a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Want {
    /// The namespace.
    pub namespace: String,
    /// HEADs of what it holds: none or one.
    pub have: Vec<Head>,
    /// What it refused and does not want again: at most two.
    pub refused: Vec<(Position, NackCode)>,
}

/// WELCOME, down: the answer to HELLO; sent again whenever it changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The server.
    pub server: ServerId,
    /// Servers from the authority to here.
    pub path: Vec<ServerId>,
    /// Time between beacons, in milliseconds.
    pub beacon_ms: u32,
    /// Most payload bytes that the server has on their way, in bytes; the smaller of this and the window in
    /// HELLO counts.
    pub window: u32,
    /// What it says of each namespace wanted.
    pub namespaces: Vec<(String, NamespaceStatus)>,
}

/// DELTA or SNAPSHOT, down (a SNAPSHOT after OFFER: up): a slice of what leads to the state that `head` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// The state at the end of the transfer.
    pub head: Head,
    /// Where a DELTA starts; `None` for a SNAPSHOT.
    pub base: Option<Base>,
    /// Place of `bytes` in the payload; 0 starts a transfer and drops an unfinished one.
    pub offset: u64,
    /// Nothing follows.
    pub last: bool,
    /// The slice.
    pub bytes: Bytes,
}

/// ACK, up: a node reached a level.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// The namespace.
    pub namespace: String,
    /// The revision.
    pub position: Position,
    /// The history that it is of.
    pub mark: ChainMark,
    /// What was done.
    pub level: Level,
    /// It is not on disk and may be gone after a restart.
    pub volatile: bool,
}

/// NACK, up: a node does not take a revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nack {
    /// The namespace.
    pub namespace: String,
    /// What is refused.
    pub position: Position,
    /// The history that it is of: as its HEAD says, verified or not.
    pub mark: ChainMark,
    /// What stays visible; the zero position if nothing is.
    pub stays_at: Position,
    /// Why.
    pub code: NackCode,
    /// For people; at most 1 KiB.
    pub text: String,
}

/// GOODBYE, both ways: the sender closes the pipe now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Goodbye {
    /// Why.
    pub code: GoodbyeCode,
    /// Highest boot known, for [`GoodbyeCode::StaleBoot`]; else 0.
    pub detail: u64,
    /// When to come back at the earliest, in milliseconds.
    pub retry_after_ms: u32,
    /// Where else to go.
    pub alternates: Vec<String>,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Frame {
    /// Type 1.
    Hello(Hello),
    /// Type 2.
    Welcome(Welcome),
    /// Type 3: wants, and why.
    Want(WantReason, Vec<Want>),
    /// Type 4 (with a base) or 5 (without).
    Slice(Box<Slice>),
    /// Type 6: a transfer of the namespace will come when a slot is free; so many come before, this one included.
    Waiting(String, u32),
    /// Type 7: HEADs of what this pipe wants; empty only keeps the pipe alive.
    Beacon(Vec<Head>),
    /// Type 8, both ways: payload bytes taken off this pipe since HELLO.
    Credit(u64),
    /// Type 9.
    Ack(Ack),
    /// Type 10.
    Nack(Nack),
    /// Type 11.
    Report(Box<Report>),
    /// Type 12, down, routed to the node: a higher boot of it is known, this one.
    Stale(Id, u64),
    /// Type 13, down: send me your state at this position of the namespace.
    Offer(String, Position),
    /// Type 14.
    Goodbye(Goodbye),
    /// A type that this side does not know.
    Unknown {
        /// The type.
        kind: u8,
        /// It may be ignored.
        optional: bool,
    },
}

fn put_position(out: &mut Vec<u8>, p: &Position) {
    out.u64(p.epoch.number);
    out.raw(&p.epoch.incarnation.0);
    out.u64(p.rev);
}

fn get_position(r: &mut Reader<'_>) -> Result<Position> {
    let epoch = Epoch { number: r.u64()?, incarnation: Id(r.array()?) };
    Ok(Position { epoch, rev: r.u64()? })
}

fn put_claim(out: &mut Vec<u8>, claim: &Claim) {
    put_position(out, &claim.position);
    out.raw(&claim.mark.0);
}

fn get_claim(r: &mut Reader<'_>) -> Result<Claim> {
    Ok(Claim { position: get_position(r)?, mark: ChainMark(r.array()?) })
}

impl Base {
    fn encode(&self, out: &mut Vec<u8>) {
        put_position(out, &self.position);
        out.raw(&self.chain);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Base { position: get_position(r)?, chain: r.array()? })
    }
}

impl Head {
    /// Appends its bytes. All before the signature is what a signature is over.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.raw(&self.cluster.0);
        out.text(&self.namespace, MAX_NAMESPACE);
        put_position(out, &self.position);
        out.u64(self.prev_rev);
        out.raw(&self.digest.0);
        out.u32(self.keys);
        out.u64(self.bytes);
        out.raw(&self.chain);
        out.short(&self.audience);
        out.u64(self.seq);
        out.u32(self.key_id);
        out.raw(&self.sig.0);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Head> {
        Ok(Head {
            cluster: Id(r.array()?),
            namespace: r.string(MAX_NAMESPACE, "namespace")?,
            position: get_position(r)?,
            prev_rev: r.u64()?,
            digest: Digest(r.array()?),
            keys: r.u32()?,
            bytes: r.u64()?,
            chain: r.array()?,
            audience: r.short(MAX_AUDIENCE, "audience")?,
            seq: r.u64()?,
            key_id: r.u32()?,
            sig: Signature(r.array()?),
        })
    }
}

fn put_wants(out: &mut Vec<u8>, wants: &[Want]) {
    let wants = &wants[..wants.len().min(MAX_WANTS)];
    out.u16(wants.len() as u16);
    for want in wants {
        out.text(&want.namespace, MAX_NAMESPACE);
        let (have, refused) =
            (&want.have[..want.have.len().min(2)], &want.refused[..want.refused.len().min(2)]);
        out.u8(have.len() as u8);
        have.iter().for_each(|head| head.encode(out));
        out.u8(refused.len() as u8);
        for (position, code) in refused {
            put_position(out, position);
            out.u8(*code as u8);
        }
    }
}

fn get_wants(r: &mut Reader<'_>) -> Result<Vec<Want>> {
    let len = usize::from(r.u16()?);
    r.list(len, MAX_WANTS, "wants", |r| {
        let namespace = r.string(MAX_NAMESPACE, "namespace")?;
        let len = usize::from(r.u8()?);
        let have = r.list(len, 2, "have", Head::decode)?;
        let len = usize::from(r.u8()?);
        let refused = r.list(len, 2, "refused", |r| Ok((get_position(r)?, NackCode::decode(r)?)))?;
        Ok(Want { namespace, have, refused })
    })
}

fn start(kind: u8) -> Vec<u8> {
    vec![VERSION, kind, 0, 0]
}

impl Slice {
    /// Appends all before the payload: it has the same length for every slice of a transfer.
    pub(crate) fn prefix(head: &Head, base: Option<&Base>, offset: u64, last: bool) -> Vec<u8> {
        let mut out = start(if base.is_some() { 4 } else { 5 });
        head.encode(&mut out);
        if let Some(base) = base {
            base.encode(&mut out);
        }
        out.u64(offset);
        out.u8(u8::from(last));
        out
    }

    fn decode(r: &mut Reader<'_>, with_base: bool) -> Result<Slice> {
        let head = Head::decode(r)?;
        let base = if with_base { Some(Base::decode(r)?) } else { None };
        let (offset, last, bytes) = (r.u64()?, r.bool()?, r.long()?);
        if bytes.len() > SLICE {
            return Err(DecodeError::TooLong("slice"));
        }
        Ok(Slice { head, base, offset, last, bytes })
    }
}

impl Frame {
    /// Its bytes. Strings and lists that are over their bounds are cut to them.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Frame::Hello(hello) => hello.encode(),
            Frame::Welcome(welcome) => welcome.encode(),
            Frame::Want(reason, wants) => {
                let mut out = start(3);
                out.u8(*reason as u8);
                put_wants(&mut out, wants);
                out
            }
            Frame::Slice(slice) => {
                let mut out = Slice::prefix(&slice.head, slice.base.as_ref(), slice.offset, slice.last);
                out.long(&slice.bytes);
                out
            }
            Frame::Waiting(namespace, place) => {
                let mut out = start(6);
                out.text(namespace, MAX_NAMESPACE);
                out.u32(*place);
                out
            }
            Frame::Beacon(heads) => {
                let mut out = start(7);
                let heads = &heads[..heads.len().min(MAX_HEADS)];
                out.u16(heads.len() as u16);
                heads.iter().for_each(|head| head.encode(&mut out));
                out
            }
            Frame::Credit(taken) => {
                let mut out = start(8);
                out.u64(*taken);
                out
            }
            Frame::Ack(ack) => {
                let mut out = start(9);
                out.text(&ack.namespace, MAX_NAMESPACE);
                put_claim(&mut out, &ack.claim());
                out.u8(ack.level as u8);
                out.u8(u8::from(ack.volatile));
                out
            }
            Frame::Nack(nack) => {
                let mut out = start(10);
                out.text(&nack.namespace, MAX_NAMESPACE);
                put_claim(&mut out, &nack.claim());
                put_position(&mut out, &nack.stays_at);
                out.u8(nack.code as u8);
                out.text(&nack.text, MAX_TEXT);
                out
            }
            Frame::Report(report) => report.encode(),
            Frame::Stale(node, boot) => {
                let mut out = start(12);
                out.raw(&node.0);
                out.u64(*boot);
                out
            }
            Frame::Offer(namespace, position) => {
                let mut out = start(13);
                out.text(namespace, MAX_NAMESPACE);
                put_position(&mut out, position);
                out
            }
            Frame::Goodbye(goodbye) => {
                let mut out = start(14);
                out.u8(goodbye.code as u8);
                out.u64(goodbye.detail);
                out.u32(goodbye.retry_after_ms);
                let alternates = &goodbye.alternates[..goodbye.alternates.len().min(MAX_ALTERNATES)];
                out.u8(alternates.len() as u8);
                alternates.iter().for_each(|url| out.text(url, MAX_TEXT));
                out
            }
            Frame::Unknown { kind, optional } => {
                let mut out = start(*kind);
                out[3] = u8::from(*optional);
                out
            }
        }
    }

    /// The message that these bytes are.
    ///
    /// # Errors
    /// What is wrong with them. No value of a field makes it allocate more than the bytes themselves take.
    pub fn decode(bytes: &Bytes) -> Result<Frame> {
        let mut r = Reader::new(bytes);
        let (version, kind, flags) = (r.u8()?, r.u8()?, r.u16()?);
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let frame = match kind {
            1 => Frame::Hello(Hello::decode(&mut r)?),
            2 => Frame::Welcome(Welcome::decode(&mut r)?),
            3 => Frame::Want(WantReason::decode(&mut r)?, get_wants(&mut r)?),
            4 | 5 => Frame::Slice(Box::new(Slice::decode(&mut r, kind == 4)?)),
            6 => Frame::Waiting(r.string(MAX_NAMESPACE, "namespace")?, r.u32()?),
            7 => {
                let len = usize::from(r.u16()?);
                Frame::Beacon(r.list(len, MAX_HEADS, "heads", Head::decode)?)
            }
            8 => Frame::Credit(r.u64()?),
            9 => Frame::Ack(Ack {
                namespace: r.string(MAX_NAMESPACE, "namespace")?,
                position: get_position(&mut r)?,
                mark: ChainMark(r.array()?),
                level: Level::decode(&mut r)?,
                volatile: r.bool()?,
            }),
            10 => Frame::Nack(Nack {
                namespace: r.string(MAX_NAMESPACE, "namespace")?,
                position: get_position(&mut r)?,
                mark: ChainMark(r.array()?),
                stays_at: get_position(&mut r)?,
                code: NackCode::decode(&mut r)?,
                text: r.string(MAX_TEXT, "text")?,
            }),
            11 => Frame::Report(Box::new(Report::decode(&mut r)?)),
            12 => Frame::Stale(Id(r.array()?), r.u64()?),
            13 => Frame::Offer(r.string(MAX_NAMESPACE, "namespace")?, get_position(&mut r)?),
            14 => {
                let (code, detail, retry_after_ms) = (GoodbyeCode::decode(&mut r)?, r.u64()?, r.u32()?);
                let len = usize::from(r.u8()?);
                let alternates =
                    r.list(len, MAX_ALTERNATES, "alternates", |r| r.string(MAX_TEXT, "alternate"))?;
                Frame::Goodbye(Goodbye { code, detail, retry_after_ms, alternates })
            }
            _ => return Ok(Frame::Unknown { kind, optional: flags & OPTIONAL != 0 }),
        };
        r.end()?;
        Ok(frame)
    }
}

impl Hello {
    fn encode(&self) -> Vec<u8> {
        let mut out = start(1);
        out.raw(&self.node.0);
        out.u64(self.boot);
        out.u32(self.attempt);
        out.u8(self.kind as u8);
        out.text(&self.name, 256);
        let labels = &self.labels[..self.labels.len().min(MAX_LABELS)];
        out.u8(labels.len() as u8);
        for (name, value) in labels {
            out.text(name, 96);
            out.text(value, 96);
        }
        out.u8(self.proto_min);
        out.u8(self.proto_max);
        out.raw(&self.cluster.0);
        out.u32(self.window);
        out.u32(self.max_chunk);
        put_wants(&mut out, &self.wants);
        out
    }

    fn decode(r: &mut Reader<'_>) -> Result<Hello> {
        let (node, boot, attempt) = (Id(r.array()?), r.u64()?, r.u32()?);
        let (kind, name) = (NodeKind::decode(r)?, r.string(256, "name")?);
        let len = usize::from(r.u8()?);
        let labels = r.list(len, MAX_LABELS, "labels", |r| {
            Ok((r.string(MAX_HELLO, "label")?, r.string(MAX_HELLO, "label")?))
        })?;
        let (proto_min, proto_max, cluster) = (r.u8()?, r.u8()?, Id(r.array()?));
        let (window, max_chunk) = (r.u32()?, r.u32()?);
        if r.at() > MAX_HELLO {
            return Err(DecodeError::TooLong("hello"));
        }
        if window == 0 || max_chunk < MIN_CHUNK {
            return Err(DecodeError::Value("window or max_chunk"));
        }
        let wants = get_wants(r)?;
        Ok(Hello {
            node,
            boot,
            attempt,
            kind,
            name,
            labels,
            proto_min,
            proto_max,
            cluster,
            window,
            max_chunk,
            wants,
        })
    }
}

impl Welcome {
    fn encode(&self) -> Vec<u8> {
        let mut out = start(2);
        out.raw(&self.server.0);
        let path = &self.path[..self.path.len().min(MAX_PATH)];
        out.u8(path.len() as u8);
        path.iter().for_each(|server| out.raw(&server.0));
        out.u32(self.beacon_ms);
        out.u32(self.window);
        let namespaces = &self.namespaces[..self.namespaces.len().min(MAX_WANTS)];
        out.u16(namespaces.len() as u16);
        for (name, status) in namespaces {
            out.text(name, MAX_NAMESPACE);
            out.u8(*status as u8);
        }
        out
    }

    fn decode(r: &mut Reader<'_>) -> Result<Welcome> {
        let server = Id(r.array()?);
        let len = usize::from(r.u8()?);
        let path = r.list(len, MAX_PATH, "path", |r| r.array().map(Id))?;
        let (beacon_ms, window) = (r.u32()?, r.u32()?);
        let len = usize::from(r.u16()?);
        let namespaces = r.list(len, MAX_WANTS, "namespaces", |r| {
            Ok((r.string(MAX_NAMESPACE, "namespace")?, NamespaceStatus::decode(r)?))
        })?;
        Ok(Welcome { server, path, beacon_ms, window, namespaces })
    }
}

// Here, behind the macro that it uses.
pub mod client;

#[cfg(test)]
mod tests;
