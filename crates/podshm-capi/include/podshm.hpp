/* podshm.hpp: podshm.h for C++17, in this file alone.
 *
 *   - Handles are objects that can be moved and not copied; they free themselves.
 *   - Bytes are views: podshm::Bytes of what is read, podshm::Room of what is written. Both are made of anything that has data() and size(), and
 *     of arrays, all of them; but of a literal, or another array of const char that ends with a zero byte, without that byte. A pointer to char
 *     is text up to its first zero byte. They are used until the function returns, and not kept.
 *   - What can fail returns a podshm::Result, which holds the value or a podshm::Error. Nothing here throws; an allocation that fails ends as
 *     it does in the rest of the program.
 *   - Times are std::chrono durations; podshm::forever has no end.
 *
 *     auto client = podshm::Client::join("/run/podshm", 5s);
 *     if (!client) return fail(client.error());
 *     auto routes = client->table("routes");
 *     std::array<char, 4096> route;
 *     if (auto len = routes->get("shop/cart:http", route); len && *len) use(std::string_view(route.data(), **len));
 *
 * What each function does, which thread may call it and what it promises: podshm.h and SEMANTICS.md. */
#ifndef PODSHM_HPP
#define PODSHM_HPP

#include "podshm.h"

#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace podshm {

using Nanos = std::chrono::nanoseconds;

/* A timeout without end. */
inline constexpr Nanos forever = Nanos::max();

namespace detail {

constexpr std::uint64_t nanos(Nanos time) noexcept
{
    if (time == forever)
        return PODSHM_FOREVER;
    return time.count() < 0 ? 0 : static_cast<std::uint64_t>(time.count());
}

template <class C>
using is_bytes = std::enable_if_t<sizeof(*std::data(std::declval<C &>())) == 1>;

template <class A>
inline constexpr bool is_array_of_bytes = std::rank_v<A> == 1 && sizeof(std::remove_extent_t<A>) == 1;

/* A literal can't be told from another array of const char: the zero byte that ends it is what there is to go by. */
template <class T, std::size_t N>
constexpr std::size_t size_of_array(T (&bytes)[N]) noexcept
{
    if constexpr (std::is_same_v<T, const char>)
        return bytes[N - 1] == '\0' ? N - 1 : N;
    else
        return N;
}

template <auto Free>
struct Frees {
    template <class T>
    void operator()(T *handle) const noexcept
    {
        (void)Free(handle);
    }
};

template <class T, auto Free>
using Handle = std::unique_ptr<T, Frees<Free>>;

} // namespace detail

/* Bytes that are read. */
class Bytes {
public:
    constexpr Bytes() noexcept = default;
    constexpr Bytes(const void *data, std::size_t size) noexcept : data_(data), size_(size) {}
    constexpr Bytes(std::string_view text) noexcept : data_(text.data()), size_(text.size()) {}
    /* A template, so that it is not preferred to an array's. */
    template <class P, std::enable_if_t<std::is_same_v<P, const char *> || std::is_same_v<P, char *>, int> = 0>
    constexpr Bytes(const P &text) noexcept : Bytes(std::string_view(text))
    {
    }
    template <class A, std::enable_if_t<detail::is_array_of_bytes<A>, int> = 0>
    constexpr Bytes(A &bytes) noexcept : data_(bytes), size_(detail::size_of_array(bytes))
    {
    }
    template <class C, class = detail::is_bytes<const C>, class = std::enable_if_t<!std::is_array_v<C>>>
    constexpr Bytes(const C &bytes) noexcept : data_(std::data(bytes)), size_(std::size(bytes))
    {
    }

    constexpr const void *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    const unsigned char *begin() const noexcept { return static_cast<const unsigned char *>(data_); }
    const unsigned char *end() const noexcept { return begin() + size_; }
    std::string_view text() const noexcept { return {static_cast<const char *>(data_), size_}; }

private:
    const void *data_ = nullptr;
    std::size_t size_ = 0;
};

/* Room for bytes. */
class Room {
public:
    constexpr Room() noexcept = default;
    constexpr Room(void *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class C, class = detail::is_bytes<C>, class = std::enable_if_t<!std::is_const_v<C>>>
    constexpr Room(C &bytes) noexcept : data_(std::data(bytes)), size_(std::size(bytes))
    {
    }

    constexpr void *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    unsigned char *begin() const noexcept { return static_cast<unsigned char *>(data_); }
    unsigned char *end() const noexcept { return begin() + size_; }

private:
    void *data_ = nullptr;
    std::size_t size_ = 0;
};

/* Why something was not done. */
class Error {
public:
    /* That of this thread's last call, which returned `code`. `needed` is what a buffer would have to hold. */
    explicit Error(podshm_result code, std::size_t needed = 0) : code_(code), needed_(needed)
    {
        /* These are part of a program's day: their words are not worth an allocation. */
        if (code == PODSHM_FULL || code == PODSHM_NOT_YET || code == PODSHM_NOT_FOUND)
            return;
        message_ = podshm_last_message();
        errno_ = podshm_last_errno();
        status_ = podshm_last_status();
    }

    podshm_result code() const noexcept { return code_; }
    /* As in podshm.h. */
    const char *name() const noexcept { return podshm_result_name(code_); }
    /* In words, with what to do about it. */
    const char *message() const noexcept { return message_.empty() ? name() : message_.c_str(); }
    int system() const noexcept { return errno_; }
    std::uint32_t status() const noexcept { return status_; }
    std::size_t needed() const noexcept { return needed_; }

private:
    podshm_result code_;
    std::size_t needed_;
    std::string message_;
    int errno_ = 0;
    std::uint32_t status_ = 0;
};

/* A value, or why there is none. Looking at the one that is not there is a defect of the program, which assert() finds. */
template <class T = std::monostate>
class [[nodiscard]] Result {
public:
    Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const noexcept { return held_.index() == 0; }
    explicit operator bool() const noexcept { return ok(); }
    podshm_result code() const noexcept { return ok() ? PODSHM_OK : error().code(); }

    const Error &error() const noexcept { return *expect(std::get_if<1>(&held_)); }
    T &value() noexcept { return *expect(std::get_if<0>(&held_)); }
    const T &value() const noexcept { return *expect(std::get_if<0>(&held_)); }
    T &operator*() noexcept { return value(); }
    const T &operator*() const noexcept { return value(); }
    T *operator->() noexcept { return &value(); }
    const T *operator->() const noexcept { return &value(); }

private:
    template <class P>
    static P expect(P there) noexcept
    {
        assert(there && "a podshm::Result without what is asked for");
        return there;
    }

    std::variant<T, Error> held_;
};

using Done = Result<>;

namespace detail {

inline Done done(podshm_result result, std::size_t needed = 0)
{
    if (result == PODSHM_OK)
        return std::monostate();
    return Error(result, needed);
}

/* `out` of a call that returned `result`. */
template <class T>
Result<T> out(podshm_result result, T value)
{
    if (result == PODSHM_OK)
        return Result<T>(std::move(value));
    return Error(result);
}

/* What `ask(out-parameter)` gives. */
template <class T, class Ask>
Result<T> ask(Ask ask)
{
    T value{};
    podshm_result result = ask(&value);
    return out<T>(result, std::move(value));
}

/* A length, or nothing where there is no such key. */
inline Result<std::optional<std::size_t>> found(podshm_result result, std::size_t len)
{
    if (result == PODSHM_OK)
        return std::optional<std::size_t>(len);
    if (result == PODSHM_NOT_FOUND)
        return std::optional<std::size_t>();
    return Error(result, len);
}

/* The object around what `make(out-parameter)` makes. */
template <class Object, class Raw, class Make>
Result<Object> make(Make make)
{
    Raw *raw = nullptr;
    podshm_result result = make(&raw);
    if (result == PODSHM_OK)
        return Object(raw);
    return Error(result);
}

/* Functions of C's that call one of C++'s, by a pointer to it. An exception can't pass: noexcept ends the program. */
template <class F>
void fills(void *user, std::size_t offset, void *part, std::size_t len) noexcept
{
    (*static_cast<F *>(user))(offset, Room(part, len));
}

template <class F>
void gets(void *user, std::size_t offset, std::size_t total, const void *part, std::size_t len) noexcept
{
    (*static_cast<F *>(user))(offset, total, Bytes(part, len));
}

template <class F>
void deletes(void *user) noexcept
{
    delete static_cast<F *>(user);
}

template <class F>
bool asks(void *user) noexcept
{
    return (*static_cast<F *>(user))();
}

} // namespace detail
} // namespace podshm

#include "podshm_client.hpp"

#include "podshm_agent.hpp"

#endif
