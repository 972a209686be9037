#include "weightmap/remote/address_class.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "weightmap/remote/uri_parts.h"

namespace librarian::weightmap::remote {
namespace {

struct Block {
  std::array<std::uint8_t, 16> prefix;
  unsigned bits;
};

template <std::size_t N>
bool in_block(const std::array<std::uint8_t, N>& address, const Block& block) {
  for (unsigned bit = 0; bit < block.bits; ++bit) {
    const unsigned mask = 0x80U >> (bit % 8);
    if ((address[bit / 8] & mask) != (block.prefix[bit / 8] & mask)) {
      return false;
    }
  }
  return true;
}

constexpr Block kPrivate4[] = {
    {{0}, 8},         {{10}, 8},       {{100, 64}, 10},      {{127}, 8},
    {{169, 254}, 16}, {{172, 16}, 12}, {{192, 0, 0}, 24},    {{192, 0, 2}, 24},
    {{192, 168}, 16}, {{198, 18}, 15}, {{198, 51, 100}, 24}, {{203, 0, 113}, 24},
    {{224}, 3},
};
constexpr Block kPrivate6[] = {
    {{}, 96},  // ::, ::1 and the old IPv4-compatible ones
    {{0x01, 0x00}, 64}, {{0x20, 0x01, 0x0d, 0xb8}, 32},
    {{0xfc}, 7},        {{0xfe, 0x80}, 10},
    {{0xfe, 0xc0}, 10}, {{0xff}, 8},
};
// Their last four bytes are an IPv4 address that the packet ends up at.
constexpr Block kMapped4[] = {
    {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 96},
    {{0x00, 0x64, 0xff, 0x9b}, 96},
};

bool is_public4(const std::array<std::uint8_t, 4>& address) {
  return std::none_of(std::begin(kPrivate4), std::end(kPrivate4),
                      [&](const Block& block) { return in_block(address, block); });
}

}  // namespace

bool is_public_address(const std::string& address) {
  std::array<std::uint8_t, 4> v4{};
  if (::inet_pton(AF_INET, address.c_str(), v4.data()) == 1) {
    return is_public4(v4);
  }
  std::array<std::uint8_t, 16> v6{};
  // A zone ("fe80::1%eth0") exists for link-local addresses only, so it never parses as public.
  if (::inet_pton(AF_INET6, address.c_str(), v6.data()) != 1) {
    return false;
  }
  for (const Block& block : kMapped4) {
    if (in_block(v6, block)) {
      std::copy_n(v6.begin() + 12, 4, v4.begin());
      return is_public4(v4);
    }
  }
  return std::none_of(std::begin(kPrivate6), std::end(kPrivate6),
                      [&](const Block& block) { return in_block(v6, block); });
}

bool names_private_host(const Uri& url) {
  std::string host = host_of(url);
  if (host.ends_with('.')) {
    host.pop_back();  // The root: the same name.
  }
  if (host == "localhost" || host.ends_with(".localhost")) {
    return true;
  }
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
    return !is_public_address(host);
  }
  std::array<std::uint8_t, 4> v4{};
  return ::inet_pton(AF_INET, host.c_str(), v4.data()) == 1 && !is_public4(v4);
}

bool proxy_is_set(const Environment& environment) {
  for (const char* name : {"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"}) {
    if (!environment(name).value_or("").empty()) {
      return true;
    }
  }
  return false;
}

}  // namespace librarian::weightmap::remote
