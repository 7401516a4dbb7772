// The agent's half of the conformance suite in C++; the rest of the program is tests/c/conform.c.
#include "conform.h"
#include "podshm.hpp"

#include <cstring>
#include <sstream>
#include <thread>

namespace {

using namespace std::chrono_literals;
using podshm::Bytes;
using podshm::Result;
using podshm::Room;
using Data = std::vector<unsigned char>;
using Said = Result<std::string>;

Said ok()
{
    return std::string("ok");
}

template <class T>
Said plain(const Result<T> &result)
{
    return result ? ok() : Said(result.error());
}

Data made(std::size_t len, std::uint64_t seed)
{
    Data data(len);
    bytes(data.data(), len, seed);
    return data;
}

// What it does with what comes.
struct Keep : podshm::Handler {
    std::string how = "at-once";
    // Bytes that an answer has beyond its request's.
    std::size_t more = 0;
    std::vector<std::pair<std::string, Data>> records;
    Data gathered;
    int parts = 0;

    void record(const podshm::Record &record) noexcept override
    {
        records.emplace_back(record.service(), Data(record.bytes().begin(), record.bytes().end()));
    }

    bool part(const podshm::Request &request, std::size_t offset) noexcept override
    {
        if (how != "parts")
            return false;
        gathered.resize(offset);
        gathered.insert(gathered.end(), request.bytes().begin(), request.bytes().end());
        parts++;
        return true;
    }

    void call(const podshm::Request &request, podshm::Answer &answer) noexcept override
    {
        Bytes asked = request.bytes().size() ? request.bytes() : Bytes(gathered.data(), request.total());
        Data reversed(std::make_reverse_iterator(asked.end()), std::make_reverse_iterator(asked.begin()));
        reversed.resize(reversed.size() + more);
        podshm::Done done = std::monostate();
        if (how == "hang")
            hang();
        else if (how.rfind("fail:", 0) == 0)
            done = answer.fail(static_cast<std::uint32_t>(std::stoul(how.substr(5))));
        else if (how == "later" || how.rfind("late-fail:", 0) == 0) {
            auto deferred = answer.defer();
            if (!deferred)
                die("a deferred answer", deferred.error().message());
            auto fails = how == "later" ? 0 : static_cast<std::uint32_t>(std::stoul(how.substr(10)));
            std::thread([deferred = std::move(*deferred), fails, reversed]() mutable {
                std::this_thread::sleep_for(5ms);
                if (auto given = fails ? deferred.fail(fails) : deferred.reply(reversed); !given)
                    die("a deferred answer", given.error().message());
            }).detach();
        } else if (how == "in-place")
            done = answer.reply_with(reversed.size(), [reversed](std::size_t offset, Room place) {
                std::memcpy(place.data(), reversed.data() + offset, place.size());
            });
        else if (how != "nothing")
            done = answer.reply(reversed);
        if (!done)
            die("an answer", done.error().message());
    }
};

Keep keep;
std::optional<podshm::Agent> agent;
bool serves, closed;
std::string behind;

Result<podshm_progress> poll_once()
{
    return agent->poll(keep);
}

// Serves until something is so.
template <class Good>
bool until(Good good)
{
    for (int n = 0; n < 20000 && !good(); n++)
        if (!agent_round())
            break;
    return good();
}

Said connect(const command *c, const char *directory)
{
    podshm::Builder builder;
    for (int n = 1; n < c->count; n++) {
        std::istringstream words(word(c, n));
        std::string name, kind, first, second;
        std::getline(words, name, ':'), std::getline(words, kind, ':'), std::getline(words, first, ':'), std::getline(words, second);
        auto one = static_cast<std::uint32_t>(std::stoul(first)), two = static_cast<std::uint32_t>(std::stoul(second));
        if (kind == "table")
            builder.table(name, std::stoull(first), std::stoull(second));
        else if (kind == "queue")
            builder.queue(name, two, one);
        else if (kind == "call")
            builder.call(name, two, one);
        else
            builder.idempotent_call(name, two, one);
    }
    auto connected = builder.connect(directory, 20s);
    if (!connected)
        return connected.error();
    agent.emplace(std::move(*connected));
    return ok();
}

Said publish(const command *c)
{
    auto table = agent->table(word(c, 1));
    std::string what = word(c, 0);
    char key[512];
    if (!table)
        return table.error();
    if (what == "put") {
        std::string name(key, key_of(word(c, 2), key));
        return plain(table->put(name, made(number(c, 3), number(c, 4))));
    }
    if (what == "remove") {
        auto there = table->remove(word(c, 2));
        return there && !*there ? Said(std::string("not found")) : plain(there);
    }
    if (what == "put-many") {
        for (unsigned n = 0; n < number(c, 2); n++)
            if (auto put = table->put("key-" + std::to_string(n), made(number(c, 3), n)); !put)
                return put.error();
        return ok();
    }
    for (int n = 2; n < c->count; n += 3)
        if (auto noted = table->put_later(word(c, n), made(number(c, n + 1), number(c, n + 2))); !noted)
            return noted.error();
    return plain(table->publish());
}

// Waits for so many more records of a queue, which follow one another.
Said expect(const command *c)
{
    std::string queue = word(c, 1);
    auto count = [&] {
        std::uint64_t n = 0;
        for (auto &record : keep.records)
            n += record.first == queue;
        return n;
    };
    std::uint64_t want = number(c, 2);
    until([&] { return count() >= want; });
    if (count() < want)
        return std::to_string(count()) + " records";
    std::uint64_t seed = number(c, 4);
    decltype(keep.records) rest;
    std::string said = "ok";
    for (auto &record : keep.records) {
        if (record.first != queue || !want)
            rest.push_back(record);
        else if (want--, record.second != made(number(c, 3), seed++))
            said = "wrong bytes: " + std::to_string(record.second.size());
    }
    keep.records = rest;
    return said;
}

std::string words(const command *c, int from)
{
    std::string all;
    for (int n = from; n < c->count; n++)
        all += (n > from ? " " : "") + std::string(word(c, n));
    return all;
}

Said happened(bool good)
{
    return std::string(good ? "ok" : "it did not happen");
}

Said follow(const command *c, const char *directory)
{
    std::string what = word(c, 0);
    if (what == "connect")
        return connect(c, directory);
    if (what == "put" || what == "remove" || what == "put-many" || what == "publish")
        return publish(c);
    if (what == "ready")
        return plain(agent->ready());
    if (what == "serve" || what == "pause")
        return serves = what == "serve", ok();
    if (what == "expect")
        return expect(c);
    if (what == "answer") {
        std::string how = word(c, 1);
        auto plus = how.find('+');
        keep.more = plus == how.npos ? 0 : std::stoul(how.substr(plus + 1));
        return keep.how = how.substr(0, plus), ok();
    }
    if (what == "parts")
        return std::string(keep.parts > 1 ? "several" : "none");
    if (what == "hangs")
        return happened(until([] { return false; }));
    if (what == "leave")
        return behind = words(c, 1), ok();
    if (what == "close")
        return serves = false, closed = true, plain(agent->close(words(c, 1)));
    if (what == "epoch") {
        auto epoch = agent->epoch();
        return epoch ? Said(std::to_string(*epoch)) : Said(epoch.error());
    }
    if (what == "close-with") {
        Data state = made(number(c, 1), number(c, 2));
        auto done = agent->close(state);
        if (done)
            serves = false, closed = true;
        return plain(done);
    }
    if (what == "inherited-is") {
        auto state = agent->inherited_state();
        Data wanted = made(number(c, 1), number(c, 2));
        if (!state || Bytes(*state).text() == Bytes(wanted).text())
            return state ? ok() : Said(state.error());
        return "wrong bytes: " + std::to_string(state->size()) + " of " + std::to_string(wanted.size());
    }
    if (what == "inherited") {
        auto state = agent->inherited_state();
        return state && state->empty() ? Said(std::string("nothing")) : state;
    }
    if (what == "await-closed")
        return happened(until([] { return closed; }));
    if (what == "await-serving")
        return happened(until([] { return agent->epoch().ok() && *agent->epoch() > 0; }));
    if (what == "poll")
        return plain(poll_once());
    return std::string("no such command");
}

void answer(command *c, const Said &said)
{
    if (said)
        says(c, said->c_str());
    else
        say(c, said.code(), said.error().needed()), reasons(said.error().message());
}

void as_child(command *c, const char *directory)
{
    answer(c, follow(c, directory));
    agent.reset();
}

} // namespace

int agent_round(void)
{
    if (!serves || !agent)
        return 0;
    auto progress = poll_once();
    podshm::Done done = std::monostate();
    if (progress && *progress == PODSHM_IDLE)
        done = agent->wait(1ms);
    else if (progress && *progress == PODSHM_CLOSE_ASKED) {
        done = agent->close(behind);
        serves = false, closed = true;
    }
    if (!progress || !done)
        die("serving", (progress ? done.error() : progress.error()).message());
    return serves;
}

void agent_command(command *c, const char *directory)
{
    if (word(c, 0) == std::string("fork"))
        return in_child(c, directory, as_child);
    answer(c, follow(c, directory));
}
