// A business program that looks a route up before each of its calls, takes the endpoints in turn, and reports how it went.
//
//   routes SOCKET-DIRECTORY ROUTE [TIMES]
//
// The lookup makes no system call; the reports go out in batches of 16. See router.cpp for the agent.
#include <podshm.hpp>

#include <algorithm>
#include <array>
#include <iostream>

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

int failed(const char *what, const podshm::Error &error)
{
    std::cerr << "routes: " << what << ": " << error.message() << '\n';
    return 1;
}

// Endpoint number `turn` of a route's "10.0.0.7:80 10.0.0.8:80".
std::string_view endpoint(std::string_view route, std::size_t turn)
{
    std::array<std::string_view, 64> all;
    std::size_t count = 0;
    while (!route.empty() && count < all.size()) {
        auto end = std::min(route.find(' '), route.size());
        all[count++] = route.substr(0, end);
        route.remove_prefix(std::min(end + 1, route.size()));
    }
    return count ? all[turn % count] : std::string_view();
}

// Accepts all of a batch, or what there is room for: a report more or less is nothing to wait for.
podshm::Done report(podshm::Queue &queue, const std::vector<std::string> &records, std::size_t &dropped)
{
    auto batch = queue.batch();
    if (!batch)
        return batch.error();
    for (const auto &record : records) {
        auto at = batch->try_push(record);
        if (!at && at.code() != PODSHM_FULL)
            return at.error();
        dropped += !at;
    }
    return batch->publish();
}

} // namespace

int main(int argc, char **argv)
{
    if (argc < 3) {
        std::cerr << "usage: routes SOCKET-DIRECTORY ROUTE [TIMES]\n";
        return 2;
    }
    auto client = podshm::Client::join(argv[1], 5s);
    if (!client)
        return failed("joining", client.error());
    auto table = client->table("routes");
    auto reports = client->queue("reports");
    if (!table || !reports)
        return failed("the agent's services", table ? reports.error() : table.error());
    auto route = table->key(argv[2]);
    if (!route)
        return failed("the route", route.error());
    std::size_t times = argc > 3 ? std::stoul(argv[3]) : 1, dropped = 0;
    std::vector<std::string> records;
    std::array<char, 4096> value;
    for (std::size_t n = 0; n < times; n++) {
        auto start = Clock::now();
        auto len = route->get(value);
        if (!len)
            return failed("looking up", len.error());
        if (!*len) {
            std::cerr << "routes: there is no route " << argv[2] << '\n';
            return 1;
        }
        auto chosen = endpoint({value.data(), **len}, n);
        // Here it would call that endpoint.
        auto took = std::chrono::duration_cast<podshm::Nanos>(Clock::now() - start).count();
        records.push_back(std::string(argv[2]) + ' ' + std::string(chosen) + ' ' + std::to_string(took));
        if (records.size() == 16 || n + 1 == times) {
            if (auto reported = report(*reports, records, dropped); !reported)
                return failed("reporting", reported.error());
            records.clear();
        }
    }
    std::cout << times << " looked up, " << dropped << " reports dropped\n";
    return 0;
}
