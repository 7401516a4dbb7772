//! Named steps, at which a test stops or kills the process that passes them.
//!
//! ```text
//!   step::at(Step::DrainClaimed)  ──►  feature `steps` off: nothing, at no cost
//!                                 ──►  on: one load; where a hook is set, the hook, which may count, wait, stop or kill
//! ```
//! Only tests turn the feature on. All steps of every crate are in this one list, so that a test which goes over [`Step::ALL`] can't
//! forget a new one. `podshm_region::steps` has the hook that reads the environment.

/// Who passes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// An agent.
    Agent,
    /// A client.
    Client,
    /// Either.
    Both,
    /// Either, in a process whose broker was started anew.
    Rejoin,
    /// The broker.
    Broker,
    /// The broker, where it keeps a ledger.
    Ledger,
}

impl Side {
    /// Whether an agent passes it.
    pub fn is_agents(self) -> bool {
        matches!(self, Side::Agent | Side::Both)
    }

    /// Whether a client passes it.
    pub fn is_clients(self) -> bool {
        matches!(self, Side::Client | Side::Both)
    }
}

macro_rules! steps {
    ($($step:ident $name:literal $side:ident $doc:literal)*) => {
        /// A step, named after what has just happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Step {
            $(#[doc = $doc] $step,)*
        }

        impl Step {
            /// Every step there is.
            pub const ALL: &'static [Step] = &[$(Step::$step),*];

            /// Its name, as the environment spells it.
            pub const fn name(self) -> &'static str {
                match self { $(Step::$step => $name),* }
            }

            /// Who passes it.
            pub const fn side(self) -> Side {
                match self { $(Step::$step => Side::$side),* }
            }
        }
    };
}

steps! {
    // A record on its way into a ring: a client's records and requests, an agent's answers.
    PushReserved "push.reserved" Both "Room for a record is reserved, nothing is written."
    PushWritten "push.written" Both "The record's bytes are written."
    PushCommitted "push.committed" Both "The record is complete but not published."
    PushPublished "push.published" Both "Everything committed is published; nobody was woken."
    PushDoorbell "push.doorbell" Client "The agent was looked after, and woken if it slept."
    SleepArmed "sleep.armed" Both "About to sleep: armed, not looked once more."

    // A batch of a queue on its way out of a ring.
    DrainPeeked "drain.peeked" Agent "A record was found, nothing is claimed."
    DrainClaimed "drain.claimed" Agent "A batch is claimed, nothing is handled."
    DrainCopied "drain.copied" Agent "A record is copied out, its handler has not run."
    DrainHandled "drain.handled" Agent "The handler has returned, the record is not acknowledged."
    DrainAcknowledging "drain.acknowledging" Agent "A batch is handled and about to be acknowledged."
    DrainAcknowledged "drain.acknowledged" Agent "A batch is acknowledged, its claim still stands."

    // A call, there and back.
    CallSent "call.sent" Client "A request is published; where it lies is not kept yet."
    CallClaimed "call.claimed" Agent "A batch of requests is claimed, nothing is handled."
    CallCopied "call.copied" Agent "A request, or a part of one, is copied out; its handler has not run."
    CallHandled "call.handled" Agent "The handler has returned, nothing of its answer is written."
    AnswerReserved "answer.reserved" Agent "Room for an answer, or a part of one, is reserved."
    AnswerPublished "answer.published" Agent "An answer, or a part of one, is published; its request is not acknowledged."
    AnswerCopied "answer.copied" Client "An answer is copied out, not acknowledged."
    AnswerAcknowledged "answer.acknowledged" Client "Answers are acknowledged, the agent was not told of the room."

    // Coming in.
    JoinConnected "join.connected" Both "The broker has the hello, or will find it."
    JoinWelcomed "join.welcomed" Both "The broker's welcome is here, nothing is mapped."
    JoinMapped "join.mapped" Both "The own region is mapped, the broker does not know."
    JoinAcknowledged "join.acknowledged" Both "The broker was told that the own region is mapped."
    JoinSealed "join.sealed" Both "The broker says that the own region is sealed."

    // A table's writer.
    TableWritten "table.written" Agent "A record is written, no entry leads to it."
    TableSwung "table.swung" Agent "The entry leads to the new record; a new key has no tag yet, an old record is not free yet."
    TableTagged "table.tagged" Agent "A new key has its tag."
    TableCleared "table.cleared" Agent "A removed key's entry is empty, its tag is still there."
    TableVersioned "table.versioned" Agent "The version counts the publication."
    TableBatchOpen "table.batch_open" Agent "A batch is open: the version is odd."

    // A table that goes over to a larger generation.
    GrowthAsked "growth.asked" Agent "The broker was asked for a larger table."
    GrowthSealed "growth.sealed" Agent "The larger table is mapped and sealed, and empty."
    GrowthCopied "growth.copied" Agent "Everything is copied into the larger table; nobody else knows."
    GrowthPublished "growth.published" Agent "The broker was told to hand the larger table out; the old one is not released."

    // From one agent to the next.
    HandoverReady "handover.ready" Agent "The broker was told that the tables are filled."
    HandoverTaken "handover.taken" Agent "The broker lets this agent serve; it has no client yet."
    HandoverStarting "handover.starting" Agent "A ring of a client is about to be started where the predecessor ended."
    HandoverClient "handover.client" Agent "A client is taken, nothing of it was looked at."
    HandoverAsked "handover.asked" Agent "A successor is ready, this agent is asked to close."
    HandoverClosing "handover.closing" Agent "A ring is closed at its position; others may be open."
    HandoverClosed "handover.closed" Agent "Every ring is closed, the broker was not told."
    LinkMapped "link.mapped" Client "A new agent's regions are mapped, the old ones are in use."
    LinkSwapped "link.swapped" Client "The new agent's regions are in use; calls in flight were not looked at."

    // A client that goes over to its region's next generation.
    MoveMapped "move.mapped" Client "The next region is mapped, the broker does not know."
    MoveCopied "move.copied" Client "A ring is copied into the next region (or all that is left is), and not marked."
    MoveMarked "move.marked" Client "A ring goes on in the next region; others may not."
    MoveSleepers "move.sleepers" Client "Every ring is over, and who sleeps is armed in the next region; it is not marked as a whole."
    MoveDone "move.done" Client "Everything is over, the broker was not told."
    FollowMapped "follow.mapped" Agent "A client's next region is mapped, the broker does not know."
    FollowSeen "follow.seen" Agent "A client has marked rings; none of them is followed yet."
    FollowDone "follow.done" Agent "A client is followed as a whole; its old region is not let go."

    // Back to a broker that was started anew.
    RejoinPresented "rejoin.presented" Rejoin "The broker was told what is held here, it has not answered."
    RejoinMapped "rejoin.mapped" Rejoin "The new notice page is in use."

    // The broker.
    BrokerLetIn "broker.let_in" Broker "A client is let in; its welcome is not sent."
    BrokerSealed "broker.sealed" Broker "A client's region is sealed, nobody was told."
    BrokerServed "broker.served" Broker "A client that joined is to be served; the agent was not told."
    BrokerPool "broker.pool" Broker "An agent's region is sealed, it was not told."
    BrokerAskedClose "broker.asked_close" Broker "The serving agent is to be asked to close."
    BrokerEpoch "broker.epoch" Broker "The notice page has the new epoch, the successor has no client."
    BrokerHanded "broker.handed" Broker "One client is handed over; others may not be."
    BrokerPublished "broker.published" Broker "The notice page has a table's new generation, no client has it."
    BrokerNext "broker.next" Broker "A client's next region is sealed, the agent does not know."
    BrokerTold "broker.told" Broker "A client is to be told to go over."
    BrokerMoved "broker.moved" Broker "A client has gone over; nothing was let go."
    BrokerLeft "broker.left" Broker "A client is gone, its agent was not told."
    BrokerForgot "broker.forgot" Broker "A client is out of the books."

    // A broker that may be started anew: see tests/tests/rejoin_steps.rs.
    LedgerWriting "ledger.writing" Ledger "A change is made, not written down; nobody was told."
    LedgerWritten "ledger.written" Ledger "A change is written down, nobody was told."
    LedgerRewritten "ledger.rewritten" Ledger "The ledger is written anew, the old file stands."
    RejoinClient "rejoin.client" Ledger "A client is back, nobody was told."
    RejoinAgent "rejoin.agent" Ledger "An agent is back, nobody was told."
    RejoinSettled "rejoin.settled" Ledger "What nobody presented is freed, it is not written down."
    Handing "upgrade.handing" Ledger "A broker was asked to give way, and has passed on nothing."
    Handed "upgrade.handed" Ledger "A broker has passed on everything, and has not ended."
}

impl Step {
    /// The step of this name.
    pub fn named(name: &str) -> Option<Step> {
        Step::ALL.iter().copied().find(|step| step.name() == name)
    }
}

/// Whether steps do anything in this build.
pub const ON: bool = cfg!(feature = "steps");

/// What is called at each step.
#[cfg(feature = "steps")]
pub type Hook = fn(Step);

#[cfg(feature = "steps")]
static HOOK: std::sync::OnceLock<Hook> = std::sync::OnceLock::new();

/// Sets what is called at each step, once for the life of the process; says whether it was the first to.
#[cfg(feature = "steps")]
pub fn set_hook(hook: Hook) -> bool {
    HOOK.set(hook).is_ok()
}

/// Says that this thread is at `step`.
#[cfg(feature = "steps")]
#[inline]
pub fn at(step: Step) {
    if let Some(hook) = HOOK.get() {
        hook(step);
    }
}

/// Says that this thread is at `step`: nothing in this build.
#[cfg(not(feature = "steps"))]
#[inline(always)]
pub fn at(_: Step) {}

/// A bug that a test plants, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Bug {
    /// A table's entry leads to its new record before that is written.
    EntryFirst = 1,
    /// What lies in every other 8 KiB of a ring is handled and not acknowledged until what comes after it is.
    SkippedAcknowledgement = 2,
}

#[cfg(feature = "steps")]
static PLANTED: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// Plants a bug in this process.
#[cfg(feature = "steps")]
pub fn plant(bug: Bug) {
    // Relaxed: set before the process does anything else.
    PLANTED.fetch_or(bug as u32, core::sync::atomic::Ordering::Relaxed);
}

/// Whether this process has the bug.
#[cfg(feature = "steps")]
#[inline]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.load(core::sync::atomic::Ordering::Relaxed) & bug as u32 != 0
}

/// Whether this process has the bug: never in this build.
#[cfg(not(feature = "steps"))]
#[inline(always)]
pub const fn is_planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_different_and_lead_back() {
        let names: BTreeSet<&str> = Step::ALL.iter().map(|s| s.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
        assert!(Step::ALL.iter().all(|s| Step::named(s.name()) == Some(*s)));
        assert_eq!(Step::named("push"), None);
    }
}
