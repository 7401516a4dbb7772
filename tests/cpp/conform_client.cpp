// The client's half of the conformance suite in C++; the rest of the program is tests/c/conform.c.
#include "conform.h"
#include "podshm.hpp"

#include <array>
#include <cstring>
#include <poll.h>
#include <thread>
#include <unistd.h>

namespace {

using namespace std::chrono_literals;
using podshm::Bytes;
using podshm::Done;
using podshm::Error;
using podshm::Result;
using podshm::Room;
using Data = std::vector<unsigned char>;

constexpr auto PATIENCE = 20s;

std::optional<podshm::Client> client;
std::optional<std::pair<std::string, podshm::Key>> held;
std::optional<podshm::Pending> pending;
Data answer_wanted;
podshm::Nanos spin = 20us;
bool waits = false;
Data room(1 << 17);

// What a command does; its answer, where it is not "ok".
using Said = Result<std::string>;

Said ok()
{
    return std::string("ok");
}

Data made(std::size_t len, std::uint64_t seed)
{
    Data data(len);
    bytes(data.data(), len, seed);
    return data;
}

podshm::Nanos millis(const command *c, int n)
{
    return std::chrono::milliseconds(number(c, n));
}

std::string key_in(const command *c, int n)
{
    char name[512];
    return std::string(name, key_of(word(c, n), name));
}

Said check(std::size_t found, const Data &wanted)
{
    if (found == wanted.size() && std::equal(wanted.begin(), wanted.end(), room.begin()))
        return ok();
    return "wrong bytes: " + std::to_string(found) + " of " + std::to_string(wanted.size());
}

Said check(const Result<std::optional<std::size_t>> &len, const Data &wanted)
{
    if (!len)
        return len.error();
    return *len ? check(**len, wanted) : Said(std::string("not found"));
}

void let_go()
{
    held.reset();
    pending.reset();
    client.reset();
}

// --- tables

Said lookup(const command *c, const podshm::Table &table)
{
    std::string name = key_in(c, 2), what = word(c, 0);
    if (what == "get-into") {
        auto len = table.get(name, Room(room.data(), number(c, 3)));
        return len ? ok() : Said(len.error());
    }
    Data wanted = made(number(c, 3), number(c, 4));
    if (what == "get") {
        // Both ways: into room of its own, and as a string.
        auto copy = table.get(name);
        if (copy && *copy && Bytes(**copy).text() != Bytes(wanted).text())
            return std::string("wrong string");
        return check(table.get(name, room), wanted);
    }
    std::string called = word(c, 1) + (" " + name);
    if (!held || held->first != called) {
        auto key = table.key(name);
        if (!key)
            return key.error();
        held.emplace(called, std::move(*key));
    }
    return check(held->second.get(room), wanted);
}

Said part(const command *c, const podshm::Table &table)
{
    auto value = table.value(key_in(c, 2));
    if (!value)
        return value.error();
    auto size = value->size();
    if (!size || *size != number(c, 3))
        return std::string("wrong length");
    std::size_t offset = number(c, 5), len = number(c, 6);
    if (Done read = value->read(offset, Room(room.data(), len)); !read)
        return read.error();
    Data whole = made(offset + len, number(c, 4));
    return check(len, Data(whole.begin() + static_cast<std::ptrdiff_t>(offset), whole.end()));
}

Said snapshot(const command *c, const podshm::Table &table)
{
    auto snapshot = table.snapshot();
    if (!snapshot)
        return snapshot.error();
    for (int n = 2; n < c->count; n += 3)
        if (Said said = check(snapshot->get(word(c, n), room), made(number(c, n + 1), number(c, n + 2))); !said || *said != "ok")
            return said;
    auto version = snapshot->check();
    return version ? ok() : Said(version.error());
}

Said many(const command *c, const podshm::Table &table)
{
    for (unsigned n = 0; n < number(c, 2); n++)
        if (Said said = check(table.get("key-" + std::to_string(n), room), made(number(c, 3), n)); !said || *said != "ok")
            return said;
    return ok();
}

Said of_table(const command *c)
{
    auto table = client->table(word(c, 1));
    std::string what = word(c, 0);
    if (!table)
        return table.error();
    if (what == "keys") {
        auto keys = table->keys();
        return keys ? Said(std::to_string(*keys)) : Said(keys.error());
    }
    return what == "part" ? part(c, *table) : what == "snapshot" ? snapshot(c, *table) : what == "get-many" ? many(c, *table) : lookup(c, *table);
}

// --- queues

template <class T>
Said plain(const Result<T> &result)
{
    return result ? ok() : Said(result.error());
}

Said of_queue(const command *c)
{
    auto queue = client->queue(word(c, 1));
    std::string what = word(c, 0);
    if (!queue)
        return queue.error();
    bool counts = what == "push-many" || what == "push-all" || what == "batch";
    std::uint64_t count = counts ? number(c, 2) : 1, seed = number(c, counts ? 4 : 3);
    std::size_t len = number(c, counts ? 3 : 2);
    if (what == "fill") {
        std::uint64_t n = 0;
        for (;; n++) {
            auto accepted = queue->push_or_drop(made(len, seed + n));
            if (!accepted)
                return accepted.error();
            if (!*accepted)
                return std::to_string(n);
        }
    }
    if (what == "batch") {
        auto batch = queue->batch();
        if (!batch)
            return batch.error();
        for (std::uint64_t n = 0; n < count; n++)
            if (auto at = batch->try_push(made(len, seed + n)); !at)
                return at.error();
        return plain(batch->publish());
    }
    if (what == "push-all") {
        std::vector<Data> data;
        std::vector<podshm_bytes> records;
        for (std::uint64_t n = 0; n < count; n++)
            data.push_back(made(len, seed + n));
        for (auto &record : data)
            records.push_back({record.data(), record.size()});
        auto accepted = queue->try_push_all(records.data(), count);
        if (accepted && *accepted < count)
            return std::string("error FULL");
        return plain(accepted);
    }
    if (what == "push-many") {
        for (std::uint64_t n = 0; n < count; n++)
            if (auto at = queue->push(made(len, seed + n), PATIENCE); !at)
                return at.error();
        return ok();
    }
    Data record = made(len, seed);
    if (what == "push")
        return plain(queue->push(record, millis(c, 4)));
    if (what == "try-push")
        return plain(queue->try_push(record));
    if (what == "push-in-place")
        return plain(queue->try_push_with(len, [&](std::size_t offset, Room place) {
            std::memcpy(place.data(), record.data() + offset, place.size());
        }));
    auto accepted = queue->push_or_drop(record);
    return accepted && !*accepted ? Said(std::string("dropped")) : plain(accepted);
}

// --- calls

Said of_call(const command *c)
{
    auto plainly = client->call(word(c, 1));
    if (!plainly)
        return plainly.error();
    auto caller = plainly->spinning(spin);
    if (caller && waits)
        caller = caller->waiting_for_agent();
    if (!caller)
        return caller.error();
    std::string what = word(c, 0);
    Data request = made(number(c, 2), number(c, 3)), wanted(request.rbegin(), request.rend());
    auto timeout = millis(c, 4);
    if (what == "start") {
        auto out = caller->start(request, timeout);
        if (!out)
            return out.error();
        pending.emplace(std::move(*out));
        answer_wanted = wanted;
        return ok();
    }
    auto fill = [&](std::size_t offset, Room place) { std::memcpy(place.data(), request.data() + offset, place.size()); };
    auto each = [](std::size_t offset, std::size_t, Bytes part) { std::copy(part.begin(), part.end(), room.data() + offset); };
    auto len = what == "call-in-place" ? caller->call_with(request.size(), fill, timeout, each)
                                       : caller->call(request, Room(room.data(), what == "call-into" ? number(c, 5) : room.size()), timeout);
    return len ? check(*len, wanted) : Said(len.error());
}

Said taken(const Result<std::size_t> &len)
{
    return len ? check(*len, answer_wanted) : Said(len.error());
}

Said event()
{
    auto caller = client->call("decide");
    if (!caller)
        return caller.error();
    auto fd = caller->event_fd();
    if (!fd)
        return fd.error();
    for (;;) {
        if (Done armed = pending->arm(); !armed)
            return armed.error();
        Said said = taken(pending->try_take(room));
        if (said.code() != PODSHM_NOT_YET)
            return said;
        pollfd waits{*fd, POLLIN, 0};
        std::uint64_t count;
        if (poll(&waits, 1, 20000) <= 0 || read(*fd, &count, sizeof count) < 0)
            return std::string("no event");
    }
}

// --- the rest

template <class Good>
Said until(Good good)
{
    for (int n = 0; n < 20000; n++) {
        auto is = good();
        if (!is)
            return is.error();
        if (*is)
            return ok();
        std::this_thread::sleep_for(1ms);
    }
    return std::string("it did not happen");
}

Said join(const char *directory, podshm::Nanos timeout)
{
    let_go();
    auto joined = podshm::Client::join(directory, timeout);
    if (!joined)
        return joined.error();
    client.emplace(std::move(*joined));
    return ok();
}

Said text(const Result<std::string_view> &text)
{
    return text ? Said(std::string(*text)) : Said(text.error());
}

Said follow(const command *c, const char *directory)
{
    std::string what = word(c, 0);
    if (what == "join")
        return join(directory, millis(c, 1));
    if (what == "leave")
        return let_go(), ok();
    if (what == "domain")
        return text(client->domain());
    if (what == "member")
        return text(client->member());
    if (what == "present") {
        auto present = client->agent_present();
        return present ? Said(std::string(*present ? "true" : "false")) : Said(present.error());
    }
    if (what == "get" || what == "key" || what == "get-into" || what == "part" || what == "snapshot" || what == "get-many" || what == "keys")
        return of_table(c);
    if (what.rfind("push", 0) == 0 || what == "try-push" || what == "fill" || what == "batch")
        return of_queue(c);
    if (what.rfind("call", 0) == 0 || what == "start")
        return of_call(c);
    if (what == "take")
        return taken(pending->wait(room));
    if (what == "look")
        return taken(pending->try_take(room));
    if (what == "event")
        return event();
    if (what == "cancel")
        return pending.reset(), ok();
    if (what == "wait-for-agent")
        return waits = true, ok();
    if (what == "spin")
        return spin = word(c, 1) == std::string("never") ? podshm::Nanos(0) : podshm::forever, ok();
    if (what == "await-away" || what == "await-present")
        return until([&] {
            auto present = client->agent_present();
            return present ? Result<bool>(*present == (what == "await-present")) : present;
        });
    if (what == "await-epoch")
        return until([&] {
            auto epoch = client->agent_epoch();
            return epoch ? Result<bool>(*epoch >= number(c, 1)) : Result<bool>(epoch.error());
        });
    return std::string("no such command");
}

void answer(command *c, const Said &said)
{
    if (said)
        says(c, said->c_str());
    else
        say(c, said.code(), said.error().needed()), reasons(said.error().message());
}

// In a child: with its parent's handles, or, with "again", as a client of its own.
void as_child(command *c, const char *directory)
{
    if (word(c, 0) == std::string("again")) {
        std::memmove(c->words, c->words + 1, static_cast<std::size_t>(--c->count) * sizeof c->words[0]);
        if (Said joined = join(directory, PATIENCE); !joined)
            return answer(c, joined);
    }
    answer(c, follow(c, directory));
    let_go();
}

} // namespace

void client_command(command *c, const char *directory)
{
    if (word(c, 0) == std::string("fork"))
        return in_child(c, directory, as_child);
    if (word(c, 0) == std::string("prefork"))
        return in_children(c, directory, as_child);
    answer(c, follow(c, directory));
}
