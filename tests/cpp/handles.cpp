// What moves leave of handles in C++, and what becomes of functors that are handed over.
//
//   handles AGENT CLIENT     the socket directories of a pod that serves and of one that joins
#include "podshm.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <unistd.h>

using podshm::Bytes;
using podshm::Room;

static constexpr auto PATIENCE = std::chrono::seconds(60);

#define DIE(...) (std::fprintf(stderr, "line %d: ", __LINE__), std::fprintf(stderr, __VA_ARGS__), std::fputc('\n', stderr), _exit(1))
#define IS(what, expected) \
    do { \
        auto &&found = (what); \
        if (found.code() != (expected)) \
            DIE("%s is %s, expected %s: %s", #what, podshm_result_name(found.code()), #expected, podshm_last_message()); \
    } while (0)

template <class T>
static T have(podshm::Result<T> made)
{
    if (!made)
        DIE("%s", made.error().message());
    return std::move(*made);
}

// Moved to itself it is what it was, moved away it is no handle, and moved back it works again.
template <class T, class Use>
static void moves(T &object, Use use)
{
    T &same = object;
    object = std::move(same);
    IS(use(object), PODSHM_OK);
    T other = std::move(object);
    IS(use(object), PODSHM_BAD_ARGUMENT);
    IS(use(other), PODSHM_OK);
    object = std::move(other);
    IS(use(other), PODSHM_BAD_ARGUMENT);
    IS(use(object), PODSHM_OK);
}

// As many functors as there are hold this.
static const auto counted = std::make_shared<int>();

struct Answers : podshm::Handler {
    std::optional<podshm::Deferred> later;

    static auto fill(std::size_t len)
    {
        return [len, held = counted](std::size_t offset, Room room) {
            if (offset + room.size() > len)
                DIE("%zu bytes at %zu of %zu", room.size(), offset, len);
            std::memset(room.data(), 'x', room.size());
        };
    }

    void call(const podshm::Request &request, podshm::Answer &answer) noexcept override
    {
        auto asked = request.bytes().text();
        if (request.time_left() != podshm::forever)
            DIE("a caller without patience");
        if (asked == "small" || asked == "large") {
            std::size_t len = asked == "small" ? 5 : 60000;
            IS(answer.reply_with(len, fill(len)), PODSHM_OK);
            // A second one does not count.
            IS(answer.reply_with(len, fill(len)), PODSHM_OK);
        } else if (asked == "long") {
            IS(answer.reply_with(70000, fill(70000)), PODSHM_OK);
        } else if (asked == "thread") {
            std::thread([&] { IS(answer.reply_with(5, fill(5)), PODSHM_WRONG_THREAD); }).join();
            IS(answer.reply("thread"), PODSHM_OK);
        } else {
            later = have(answer.defer());
            podshm::Deferred &same = *later;
            *later = std::move(same);
            IS(later->reply("later"), PODSHM_OK);
            IS(later->reply("again"), PODSHM_ENDED);
            podshm::Deferred other = std::move(*later);
            IS(later->reply("gone"), PODSHM_BAD_ARGUMENT);
            IS(later->fail(16), PODSHM_BAD_ARGUMENT);
        }
    }
};

int main(int argc, char **argv)
{
    if (argc != 3)
        DIE("usage: handles AGENT CLIENT");
    podshm::Builder builder;
    builder.table("routes", 100, 65536).queue("reports", 1024).call("decide", 65536);
    auto agent = have(builder.connect(argv[1], PATIENCE));
    auto writer = have(agent.table("routes"));
    moves(writer, [](auto &writer) { return writer.put("k", "value"); });
    IS(agent.ready(), PODSHM_OK);
    moves(agent, [](auto &agent) { return agent.clients(); });
    // Another thread ends its sleep, which would not end otherwise.
    auto waker = have(agent.waker());
    moves(waker, [](auto &waker) { return waker.wake(); });
    for (int n = 0; n < 10; n++) // what its broker says
        IS(agent.wait(std::chrono::milliseconds(10)), PODSHM_OK);
    std::thread wakes([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        IS(waker.wake(), PODSHM_OK);
    });
    auto began = std::chrono::steady_clock::now();
    IS(agent.wait(PATIENCE), PODSHM_OK);
    if (std::chrono::steady_clock::now() - began > PATIENCE / 2)
        DIE("nobody wakes the agent");
    wakes.join();
    moves(builder, [](auto &builder) {
        // Nobody is there; a builder without a handle is found out before.
        auto connected = builder.connect("/nowhere", std::chrono::nanoseconds(1));
        return connected.code() == PODSHM_BAD_ARGUMENT ? podshm::Done(connected.error()) : podshm::Done(std::monostate());
    });
    std::atomic<bool> stops = false;
    Answers answers;
    std::thread serves([&] { IS(agent.run(answers, [&] { return stops.load(); }), PODSHM_OK); });

    auto client = have(podshm::Client::join(argv[2], PATIENCE));
    moves(client, [](auto &client) { return client.id(); });
    auto table = have(client.table("routes"));
    moves(table, [](auto &table) { return table.keys(); });
    char room[65536];
    auto key = have(table.key("k"));
    moves(key, [&](auto &key) { return key.get(room); });
    auto snapshot = have(table.snapshot());
    moves(snapshot, [&](auto &snapshot) { return snapshot.get("k", room); });
    auto value = have(table.value("k"));
    moves(value, [](auto &value) { return value.size(); });
    auto queue = have(client.queue("reports"));
    moves(queue, [](auto &queue) { return queue.dropped(); });
    {
        auto batch = have(queue.batch());
        moves(batch, [](auto &batch) { return batch.try_push("x"); });
        // One that is written in place, which is not the time for another.
        auto fill = [&](std::size_t, Room room) {
            IS(batch.try_push("y"), PODSHM_BUSY);
            std::memset(room.data(), 'z', room.size());
        };
        IS(batch.try_push_with(3, fill), PODSHM_OK);
        IS(batch.publish(), PODSHM_OK);
    }
    auto caller = have(client.call("decide"));
    moves(caller, [](auto &caller) { return caller.event_fd(); });

    for (const char *request : {"small", "large", "thread", "later"}) {
        IS(caller.call(request, room, podshm::forever), PODSHM_OK);
        // Others may be out, and wait for room, meanwhile.
        auto pending = have(caller.start(request, podshm::forever));
        moves(pending, [](auto &pending) { return pending.arm(); });
        IS(pending.wait(room), PODSHM_OK);
    }
    IS(caller.call("long", room, podshm::forever), PODSHM_FAILED);
    {
        // One that nobody waits for, which has no room yet when its agent ends.
        auto pending = have(caller.start("large", podshm::forever));
        auto second = have(caller.start("large", podshm::forever));
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        stops = true;
        serves.join();
    }
    { auto ended = std::move(agent); }
    if (counted.use_count() != 1)
        DIE("%ld functors are left", counted.use_count() - 1);
    std::puts("done");
    return 0;
}
