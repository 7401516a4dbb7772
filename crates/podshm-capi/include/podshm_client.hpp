/* The client's half of podshm.hpp, which includes it: joining, tables, queues, calls. */
#ifndef PODSHM_CLIENT_HPP
#define PODSHM_CLIENT_HPP

#ifndef PODSHM_HPP
#error "include podshm.hpp"
#endif

namespace podshm {

/* A key that is looked up again and again, by one thread. */
class Key {
public:
    explicit Key(podshm_key *raw) noexcept : raw_(raw) {}

    Result<std::optional<std::size_t>> get(Room room) const
    {
        std::size_t len = 0;
        podshm_result result = podshm_key_get(raw_.get(), room.data(), room.size(), &len);
        return detail::found(result, len);
    }

private:
    detail::Handle<podshm_key, podshm_key_free> raw_;
};

/* Several values at one version. */
class Snapshot {
public:
    explicit Snapshot(podshm_snapshot *raw) noexcept : raw_(raw) {}

    Result<std::optional<std::size_t>> get(Bytes key, Room room) const
    {
        std::size_t len = 0;
        podshm_result result = podshm_snapshot_get(raw_.get(), key.data(), key.size(), room.data(), room.size(), &len);
        return detail::found(result, len);
    }

    /* The version that everything so far was read at; PODSHM_CONTENDED where the table has changed. */
    Result<std::uint64_t> check() const
    {
        return detail::ask<std::uint64_t>([&](auto *version) { return podshm_snapshot_check(raw_.get(), version); });
    }

private:
    detail::Handle<podshm_snapshot, podshm_snapshot_free> raw_;
};

/* One value, at one moment, of which parts are read. */
class Value {
public:
    explicit Value(podshm_value *raw) noexcept : raw_(raw) {}

    Result<std::size_t> size() const
    {
        return detail::ask<std::size_t>([&](auto *len) { return podshm_value_len(raw_.get(), len); });
    }

    Done read(std::size_t offset, Room room) const
    {
        return detail::done(podshm_value_read(raw_.get(), offset, room.data(), room.size()));
    }

private:
    detail::Handle<podshm_value, podshm_value_free> raw_;
};

/* A table of the agent's. */
class Table {
public:
    explicit Table(podshm_table *raw) noexcept : raw_(raw) {}

    /* Copies the value of `key` and says how long it is; nothing where there is no such key. */
    Result<std::optional<std::size_t>> get(Bytes key, Room room) const
    {
        std::size_t len = 0;
        podshm_result result = podshm_table_get(raw_.get(), key.data(), key.size(), room.data(), room.size(), &len);
        return detail::found(result, len);
    }

    /* The value as a string of its own, however long. */
    Result<std::optional<std::string>> get(Bytes key) const
    {
        std::string value(256, '\0');
        for (;;) {
            auto len = get(key, value);
            if (len && !*len)
                return std::optional<std::string>();
            if (len) {
                value.resize(**len);
                return std::optional<std::string>(std::move(value));
            }
            if (len.code() != PODSHM_BUFFER_TOO_SMALL)
                return len.error();
            value.resize(len.error().needed());
        }
    }

    Result<Key> key(Bytes key) const
    {
        return detail::make<Key, podshm_key>(
            [&](auto **out) { return podshm_key_new(raw_.get(), key.data(), key.size(), out); });
    }

    Result<Snapshot> snapshot() const
    {
        return detail::make<Snapshot, podshm_snapshot>([&](auto **out) { return podshm_snapshot_new(raw_.get(), out); });
    }

    /* PODSHM_NOT_FOUND without such a key. */
    Result<Value> value(Bytes key) const
    {
        return detail::make<Value, podshm_value>(
            [&](auto **out) { return podshm_value_new(raw_.get(), key.data(), key.size(), out); });
    }

    Result<std::uint64_t> keys() const { return number(podshm_table_keys); }
    Result<std::uint64_t> generation() const { return number(podshm_table_generation); }
    Result<std::uint64_t> version() const { return number(podshm_table_version); }

    /* How long ago the agent published, or said that all is still true. */
    Result<Nanos> age() const
    {
        auto age = number(podshm_table_age);
        if (!age)
            return age.error();
        return Nanos(static_cast<Nanos::rep>(*age));
    }

private:
    Result<std::uint64_t> number(podshm_result (*what)(const podshm_table *, std::uint64_t *)) const
    {
        return detail::ask<std::uint64_t>([&](auto *out) { return what(raw_.get(), out); });
    }

    detail::Handle<podshm_table, podshm_table_free> raw_;
};

/* Several records that are accepted together, when it is published or goes. For the thread that opened it: moved to another one, it stays
 * open. */
class Batch {
public:
    explicit Batch(podshm_batch *raw) noexcept : raw_(raw) {}

    Result<std::uint64_t> try_push(Bytes record)
    {
        return detail::ask<std::uint64_t>(
            [&](auto *at) { return podshm_batch_try_push(raw_.get(), record.data(), record.size(), at); });
    }

    /* Writes `len` bytes in place by `fill(offset, Room)`, which may not use the batch. */
    template <class Fill>
    Result<std::uint64_t> try_push_with(std::size_t len, Fill fill)
    {
        return detail::ask<std::uint64_t>(
            [&](auto *at) { return podshm_batch_try_push_with(raw_.get(), len, detail::fills<Fill>, &fill, at); });
    }

    Done publish() { return detail::done(podshm_batch_publish(raw_.get())); }

private:
    detail::Handle<podshm_batch, podshm_batch_free> raw_;
};

/* The way to a queue. */
class Queue {
public:
    explicit Queue(podshm_queue *raw) noexcept : raw_(raw) {}

    /* Each says the record's position: its sequence number. */
    Result<std::uint64_t> try_push(Bytes record)
    {
        return detail::ask<std::uint64_t>(
            [&](auto *at) { return podshm_queue_try_push(raw_.get(), record.data(), record.size(), at); });
    }

    Result<std::uint64_t> push(Bytes record, Nanos timeout)
    {
        return detail::ask<std::uint64_t>([&](auto *at) {
            return podshm_queue_push(raw_.get(), record.data(), record.size(), detail::nanos(timeout), at);
        });
    }

    /* Writes `len` bytes in place by `fill(offset, Room)`. */
    template <class Fill>
    Result<std::uint64_t> try_push_with(std::size_t len, Fill fill)
    {
        return detail::ask<std::uint64_t>(
            [&](auto *at) { return podshm_queue_try_push_with(raw_.get(), len, detail::fills<Fill>, &fill, at); });
    }

    /* Accepts so many records together, from the first on: as many as there is room for. */
    Result<std::size_t> try_push_all(const podshm_bytes *records, std::size_t count)
    {
        std::size_t accepted = 0;
        podshm_result result = podshm_queue_try_push_all(raw_.get(), records, count, &accepted);
        if (result == PODSHM_OK || (result == PODSHM_FULL && accepted))
            return accepted;
        return Error(result);
    }

    /* Whether the record was accepted; it is dropped otherwise, and counted. */
    Result<bool> push_or_drop(Bytes record)
    {
        return detail::ask<bool>(
            [&](auto *accepted) { return podshm_queue_push_or_drop(raw_.get(), record.data(), record.size(), accepted); });
    }

    Result<std::uint64_t> dropped() const
    {
        return detail::ask<std::uint64_t>([&](auto *out) { return podshm_queue_dropped(raw_.get(), out); });
    }

    Result<Batch> batch()
    {
        return detail::make<Batch, podshm_batch>([&](auto **out) { return podshm_batch_new(raw_.get(), out); });
    }

private:
    detail::Handle<podshm_queue, podshm_queue_free> raw_;
};

/* A call that is out. Its end cancels it. */
class Pending {
public:
    explicit Pending(podshm_pending *raw) noexcept : raw_(raw) {}

    /* PODSHM_NOT_YET while the response has not come. Where the room is too small the response stays. */
    Result<std::size_t> try_take(Room room)
    {
        std::size_t len = 0;
        podshm_result result = podshm_pending_try_take(raw_.get(), room.data(), room.size(), &len);
        return took(result, len);
    }

    /* Waits for it until the call's deadline. */
    Result<std::size_t> wait(Room room)
    {
        std::size_t len = 0;
        podshm_result result = podshm_pending_wait(raw_.get(), room.data(), room.size(), &len);
        return took(result, len);
    }

    /* Asks for an event on Caller::event_fd() with the next response. Look once more after this. */
    Done arm() { return detail::done(podshm_pending_arm(raw_.get())); }

private:
    static Result<std::size_t> took(podshm_result result, std::size_t len)
    {
        if (result == PODSHM_OK)
            return len;
        return Error(result, len);
    }

    detail::Handle<podshm_pending, podshm_pending_free> raw_;
};

/* The way to a call. */
class Caller {
public:
    explicit Caller(podshm_caller *raw) noexcept : raw_(raw) {}

    /* The same call, with waits that spin for so long before they sleep; forever never sleeps. */
    Result<Caller> spinning(Nanos spin) const
    {
        return detail::make<Caller, podshm_caller>(
            [&](auto **out) { return podshm_caller_spinning(raw_.get(), detail::nanos(spin), out); });
    }

    /* The same call, with calls that wait for the next agent where none serves, within their timeout. Call_with then asks for a request's parts
     * from 0 again where it was half sent as its agent died. */
    Result<Caller> waiting_for_agent() const
    {
        return detail::make<Caller, podshm_caller>(
            [&](auto **out) { return podshm_caller_waiting_for_agent(raw_.get(), out); });
    }

    /* The response's length. */
    Result<std::size_t> call(Bytes request, Room response, Nanos timeout)
    {
        std::size_t len = 0;
        podshm_result result = podshm_caller_call(raw_.get(), request.data(), request.size(), response.data(),
                                                  response.size(), detail::nanos(timeout), &len);
        if (result == PODSHM_OK)
            return len;
        return Error(result, len);
    }

    /* `fill(offset, Room)` writes the request in place, `each(offset, total, Bytes)` gets the response as it comes. */
    template <class Fill, class Each>
    Result<std::size_t> call_with(std::size_t len, Fill fill, Nanos timeout, Each each)
    {
        return detail::ask<std::size_t>([&](auto *out) {
            return podshm_caller_call_with(raw_.get(), len, detail::fills<Fill>, &fill, detail::nanos(timeout),
                                           detail::gets<Each>, &each, out);
        });
    }

    /* Sends the request and returns at once. */
    Result<Pending> start(Bytes request, Nanos timeout)
    {
        return detail::make<Pending, podshm_pending>([&](auto **out) {
            return podshm_caller_start(raw_.get(), request.data(), request.size(), detail::nanos(timeout), out);
        });
    }

    /* Readable when responses may have come; read its 8 bytes before you look. */
    Result<int> event_fd() const
    {
        return detail::ask<std::int32_t>([&](auto *fd) { return podshm_caller_event_fd(raw_.get(), fd); });
    }

private:
    detail::Handle<podshm_caller, podshm_caller_free> raw_;
};

/* A joined client. */
class Client {
public:
    explicit Client(podshm_client *raw) noexcept : raw_(raw) {}

    static Result<Client> join(const std::string &directory, Nanos timeout)
    {
        return detail::make<Client, podshm_client>(
            [&](auto **out) { return podshm_client_new(directory.c_str(), detail::nanos(timeout), out); });
    }

    Result<Table> table(const std::string &name) const
    {
        return detail::make<Table, podshm_table>(
            [&](auto **out) { return podshm_table_new(raw_.get(), name.c_str(), out); });
    }

    Result<Queue> queue(const std::string &name) const
    {
        return detail::make<Queue, podshm_queue>(
            [&](auto **out) { return podshm_queue_new(raw_.get(), name.c_str(), out); });
    }

    Result<Caller> call(const std::string &name) const
    {
        return detail::make<Caller, podshm_caller>(
            [&](auto **out) { return podshm_caller_new(raw_.get(), name.c_str(), out); });
    }

    Result<std::uint64_t> id() const { return number(podshm_client_id); }
    Result<std::uint64_t> agent_epoch() const { return number(podshm_client_agent_epoch); }
    /* These views live as long as this object, or the one that it was moved to. */
    Result<std::string_view> domain() const { return text(podshm_client_domain); }
    Result<std::string_view> member() const { return text(podshm_client_member); }

    Result<bool> agent_present() const
    {
        return detail::ask<bool>([&](auto *out) { return podshm_client_agent_present(raw_.get(), out); });
    }

private:
    Result<std::uint64_t> number(podshm_result (*what)(const podshm_client *, std::uint64_t *)) const
    {
        return detail::ask<std::uint64_t>([&](auto *out) { return what(raw_.get(), out); });
    }

    Result<std::string_view> text(podshm_result (*what)(const podshm_client *, const char **)) const
    {
        const char *text = nullptr;
        podshm_result result = what(raw_.get(), &text);
        if (result == PODSHM_OK)
            return std::string_view(text);
        return Error(result);
    }

    detail::Handle<podshm_client, podshm_client_free> raw_;
};

} // namespace podshm

#endif
