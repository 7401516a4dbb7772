// What podshm::Bytes and podshm::Room are made of, and how much of it they show.
#include "podshm.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using podshm::Bytes;
using podshm::Room;

#define IS(what, expected) \
    do { \
        if (!((what) == (expected))) \
            std::fprintf(stderr, "line %d: %s is not %s\n", __LINE__, #what, #expected), std::exit(1); \
    } while (0)

// As functions take them: by an implicit conversion.
static std::size_t size(Bytes bytes)
{
    return bytes.size();
}

static const void *data(Bytes bytes)
{
    return bytes.data();
}

static std::size_t room(Room place)
{
    return place.size();
}

static_assert(!std::is_constructible_v<Bytes, int (&)[2]> && !std::is_constructible_v<Bytes, char (&)[2][2]>);
static_assert(!std::is_constructible_v<Bytes, std::vector<int> &> && !std::is_constructible_v<Room, const char (&)[2]>);

int main()
{
    // Literals: text, with the zero bytes in it, without the one at its end.
    IS(size("route"), 5u);
    IS(size(""), 0u);
    IS(size("a\0b"), 3u);
    IS(size("a\0"), 2u);
    static constexpr char name[] = "route";
    IS(size(name), 5u);
    static constexpr const char whole[] = {'a', '\0', 'b'};
    IS(size(whole), 3u);

    // Other arrays: all of them, whether there is a zero byte in them or none.
    char chars[8] = {'a', 0, 'b'};
    IS(size(chars), 8u);
    IS(data(chars), static_cast<void *>(chars));
    std::memset(chars, 'x', sizeof chars);
    IS(size(chars), 8u);
    unsigned char unsigneds[3] = {0, 1, 2};
    const signed char signeds[3] = {0, 1, 0};
    std::byte raw[4] = {};
    const std::uint8_t octets[2] = {0, 0};
    IS(size(unsigneds), 3u);
    IS(size(signeds), 3u);
    IS(size(raw), 4u);
    IS(size(octets), 2u);
    IS(size(std::array<char, 5>{}), 5u);
    const std::array<std::byte, 6> bytes{};
    IS(size(bytes), 6u);

    // Text by a pointer, and what knows its own size.
    const char *text = "a\0b";
    char *changeable = chars;
    chars[2] = 0;
    IS(size(text), 1u);
    IS(size(changeable), 2u);
    IS(size(std::string("a\0b", 3)), 3u);
    IS(size(std::string_view("a\0b", 3)), 3u);
    IS(size(std::vector<unsigned char>(7)), 7u);
    IS(size({text, 3}), 3u);
    IS(size({}), 0u);

    std::array<char, 9> nine;
    IS(room(chars), 8u);
    IS(room(unsigneds), 3u);
    IS(room(nine), 9u);
    std::puts("done");
    return 0;
}
