/* The agent's half of podshm.hpp, which includes it: serving, answering, publishing. */
#ifndef PODSHM_AGENT_HPP
#define PODSHM_AGENT_HPP

#ifndef PODSHM_HPP
#error "include podshm.hpp"
#endif

namespace podshm {

namespace detail {

inline std::string_view view(const podshm_text &text) noexcept
{
    return {text.data, text.len};
}

} // namespace detail

/* A record as a handler gets it; it lives until that returns. */
class Record {
public:
    explicit Record(const podshm_record *raw) noexcept : raw_(raw) {}

    std::string_view service() const noexcept { return detail::view(raw_->service); }
    std::string_view member() const noexcept { return detail::view(raw_->member); }
    std::uint64_t client() const noexcept { return raw_->client; }
    std::uint64_t position() const noexcept { return raw_->position; }
    bool maybe_seen() const noexcept { return raw_->maybe_seen; }
    Bytes bytes() const noexcept { return {raw_->data, raw_->len}; }

private:
    const podshm_record *raw_;
};

/* A request as a handler gets it; it lives until that returns. */
class Request {
public:
    explicit Request(const podshm_request *raw) noexcept : raw_(raw) {}

    std::string_view service() const noexcept { return detail::view(raw_->service); }
    std::string_view member() const noexcept { return detail::view(raw_->member); }
    std::uint64_t client() const noexcept { return raw_->client; }
    bool maybe_seen() const noexcept { return raw_->maybe_seen; }
    /* Length of all of it. */
    std::size_t total() const noexcept { return raw_->total; }
    Bytes bytes() const noexcept { return {raw_->data, raw_->len}; }

    Nanos time_left() const noexcept
    {
        return raw_->time_left_ns > static_cast<std::uint64_t>(forever.count())
                   ? forever
                   : Nanos(static_cast<Nanos::rep>(raw_->time_left_ns));
    }

private:
    const podshm_request *raw_;
};

/* An answer that comes later, from any thread. Its end without one is a failed call. */
class Deferred {
public:
    explicit Deferred(podshm_deferred *raw) noexcept : raw_(raw) {}

    Done reply(Bytes response) { return detail::done(podshm_deferred_reply(raw_.get(), response.data(), response.size())); }

    /* As Answer::fail(). */
    Done fail(std::uint32_t status) { return detail::done(podshm_deferred_fail(raw_.get(), status)); }

private:
    detail::Handle<podshm_deferred, podshm_deferred_free> raw_;
};

/* Where a handler puts its answer; it lives until that returns. The first answer counts. */
class Answer {
public:
    explicit Answer(podshm_answer *raw) noexcept : raw_(raw) {}

    Done reply(Bytes response) { return detail::done(podshm_answer_reply(raw_, response.data(), response.size())); }

    /* Answers with `len` bytes that `fill(offset, Room)` writes as there is room, now or later. */
    template <class Fill>
    Done reply_with(std::size_t len, Fill fill)
    {
        auto *kept = new Fill(std::move(fill));
        return detail::done(podshm_answer_reply_with(raw_, len, detail::fills<Fill>, kept, detail::deletes<Fill>));
    }

    /* With a status of the agent's own from PODSHM_FIRST_STATUS on. */
    Done fail(std::uint32_t status) { return detail::done(podshm_answer_fail(raw_, status)); }

    Result<Deferred> defer()
    {
        return detail::make<Deferred, podshm_deferred>([&](auto **out) { return podshm_answer_defer(raw_, out); });
    }

private:
    podshm_answer *raw_;
};

/* What an agent does with what its clients send. A record is acknowledged when record() returns. None may throw: that ends the program. */
class Handler {
public:
    virtual ~Handler() = default;
    virtual void record(const Record &) noexcept {}
    virtual void call(const Request &, Answer &) noexcept {}
    virtual bool part(const Request &, std::size_t) noexcept { return false; }

    /* For podshm.h. */
    podshm_handler functions() noexcept
    {
        podshm_handler functions{};
        functions.size = sizeof functions;
        functions.user = this;
        functions.record = [](void *user, const podshm_record *raw) { static_cast<Handler *>(user)->record(Record(raw)); };
        functions.call = [](void *user, const podshm_request *raw, podshm_answer *to) {
            Answer answer(to);
            static_cast<Handler *>(user)->call(Request(raw), answer);
        };
        functions.part = [](void *user, const podshm_request *raw, std::size_t offset) {
            return static_cast<Handler *>(user)->part(Request(raw), offset);
        };
        return functions;
    }
};

/* The writer of one table, for the thread that uses its agent. */
class Writer {
public:
    explicit Writer(podshm_writer *raw) noexcept : raw_(raw) {}

    Done put(Bytes key, Bytes value)
    {
        return detail::done(podshm_writer_put(raw_.get(), key.data(), key.size(), value.data(), value.size()));
    }

    /* Whether the key was there. */
    Result<bool> remove(Bytes key)
    {
        podshm_result result = podshm_writer_remove(raw_.get(), key.data(), key.size());
        return detail::out(result == PODSHM_NOT_FOUND ? PODSHM_OK : result, result == PODSHM_OK);
    }

    /* Changes for publish(), which makes all of them at once. */
    Done put_later(Bytes key, Bytes value)
    {
        return detail::done(podshm_writer_put_later(raw_.get(), key.data(), key.size(), value.data(), value.size()));
    }

    Done remove_later(Bytes key) { return detail::done(podshm_writer_remove_later(raw_.get(), key.data(), key.size())); }
    Done publish() { return detail::done(podshm_writer_publish(raw_.get())); }
    Done touch() { return detail::done(podshm_writer_touch(raw_.get())); }

    Result<std::uint64_t> keys() const
    {
        return detail::ask<std::uint64_t>([&](auto *out) { return podshm_writer_keys(raw_.get(), out); });
    }

private:
    detail::Handle<podshm_writer, podshm_writer_free> raw_;
};

/* Ends an agent's sleep from another thread. */
class Waker {
public:
    explicit Waker(podshm_waker *raw) noexcept : raw_(raw) {}

    Done wake() const { return detail::done(podshm_waker_wake(raw_.get())); }

private:
    detail::Handle<podshm_waker, podshm_waker_free> raw_;
};

/* A connected agent, for one thread at a time. */
class Agent {
public:
    explicit Agent(podshm_agent *raw) noexcept : raw_(raw) {}

    Result<Writer> table(const std::string &name)
    {
        return detail::make<Writer, podshm_writer>(
            [&](auto **out) { return podshm_writer_new(raw_.get(), name.c_str(), out); });
    }

    /* For other threads; to be asked for before one of them runs the agent. */
    Result<Waker> waker()
    {
        return detail::make<Waker, podshm_waker>([&](auto **out) { return podshm_waker_new(raw_.get(), out); });
    }

    Done ready() { return detail::done(podshm_agent_ready(raw_.get())); }

    /* One round; `handled`, where it is given, gets how many records and requests. */
    Result<podshm_progress> poll(Handler &handler, std::size_t *handled = nullptr)
    {
        podshm_handler functions = handler.functions();
        podshm_progress progress = PODSHM_IDLE;
        podshm_result result = podshm_agent_poll(raw_.get(), &functions, &progress, handled);
        return detail::out(result, progress);
    }

    Done wait(Nanos timeout) { return detail::done(podshm_agent_wait(raw_.get(), detail::nanos(timeout))); }

    /* Serves until `stop()` is true or a successor is ready; closes in order. */
    template <class Stop>
    Done run(Handler &handler, Stop stop)
    {
        podshm_handler functions = handler.functions();
        return detail::done(podshm_agent_run(raw_.get(), &functions, detail::asks<Stop>, &stop));
    }

    Result<int> event_fd() const
    {
        return detail::ask<std::int32_t>([&](auto *fd) { return podshm_agent_event_fd(raw_.get(), fd); });
    }

    Result<bool> park()
    {
        return detail::ask<bool>([&](auto *sleeps) { return podshm_agent_park(raw_.get(), sleeps); });
    }

    Done set_spin(Nanos spin) { return detail::done(podshm_agent_set_spin(raw_.get(), detail::nanos(spin))); }

    Result<std::uint64_t> epoch() const
    {
        return detail::ask<std::uint64_t>([&](auto *out) { return podshm_agent_epoch(raw_.get(), out); });
    }

    Result<std::size_t> clients() const
    {
        return detail::ask<std::size_t>([&](auto *out) { return podshm_agent_clients(raw_.get(), out); });
    }

    /* PODSHM_NOT_YET before it serves; nothing after a crash. */
    Result<std::string> inherited_state() const
    {
        std::string state;
        for (;;) {
            std::size_t len = 0;
            podshm_result result = podshm_agent_inherited_state(raw_.get(), state.data(), state.size(), &len);
            if (result != PODSHM_OK && result != PODSHM_BUFFER_TOO_SMALL)
                return Error(result);
            state.resize(len);
            if (result == PODSHM_OK)
                return state;
        }
    }

    Done close(Bytes state = {}) { return detail::done(podshm_agent_close(raw_.get(), state.data(), state.size())); }

private:
    detail::Handle<podshm_agent, podshm_agent_free> raw_;
};

/* What an agent offers. A mistake is said by connect(). */
class Builder {
public:
    Builder()
    {
        podshm_builder *raw = nullptr;
        keep(podshm_builder_new(&raw));
        raw_.reset(raw);
    }

    Builder &table(const std::string &name, std::uint64_t keys, std::uint64_t bytes)
    {
        return keep(podshm_builder_table(raw_.get(), name.c_str(), keys, bytes));
    }

    Builder &queue(const std::string &name, std::uint32_t longest, std::uint32_t ring = PODSHM_DEFAULT_RING)
    {
        return keep(podshm_builder_queue(raw_.get(), name.c_str(), ring, longest));
    }

    Builder &call(const std::string &name, std::uint32_t longest, std::uint32_t ring = PODSHM_DEFAULT_CALL_RING)
    {
        return keep(podshm_builder_call(raw_.get(), name.c_str(), ring, longest));
    }

    /* Whose requests may be handled twice without harm. */
    Builder &idempotent_call(const std::string &name, std::uint32_t longest, std::uint32_t ring = PODSHM_DEFAULT_CALL_RING)
    {
        return keep(podshm_builder_idempotent_call(raw_.get(), name.c_str(), ring, longest));
    }

    Result<Agent> connect(const std::string &directory, Nanos timeout) const
    {
        if (error_)
            return *error_;
        return detail::make<Agent, podshm_agent>(
            [&](auto **out) { return podshm_agent_new(raw_.get(), directory.c_str(), detail::nanos(timeout), out); });
    }

private:
    /* The first mistake counts. */
    Builder &keep(podshm_result result)
    {
        if (result != PODSHM_OK && !error_)
            error_.emplace(result);
        return *this;
    }

    detail::Handle<podshm_builder, podshm_builder_free> raw_;
    std::optional<Error> error_;
};

} // namespace podshm

#endif
