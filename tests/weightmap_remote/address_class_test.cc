#include "weightmap/remote/address_class.h"

#include <gtest/gtest.h>

namespace librarian::weightmap::remote {
namespace {

TEST(AddressClass, TellsThePublicInternetFromTheRest) {
  for (const char* address :
       {"8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1",
        "192.167.1.1", "198.17.1.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::1",
        "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"}) {
    EXPECT_TRUE(is_public_address(address)) << address;
  }
  for (const char* address : {"0.0.0.0",
                              "10.1.2.3",
                              "100.64.0.1",
                              "127.0.0.1",
                              "127.255.255.254",
                              "169.254.169.254",
                              "172.16.0.1",
                              "172.31.255.255",
                              "192.168.0.1",
                              "192.0.0.1",
                              "198.18.0.1",
                              "224.0.0.1",
                              "240.0.0.1",
                              "255.255.255.255",
                              "::",
                              "::1",
                              "::7f00:1",
                              "fc00::1",
                              "fd12::1",
                              "fe80::1",
                              "fe80::1%eth0",
                              "ff02::1",
                              "2001:db8::1",
                              "::ffff:127.0.0.1",
                              "::ffff:10.0.0.1",
                              "64:ff9b::10.0.0.1",
                              "",
                              "example.org",
                              "8.8.8",
                              "8.8.8.8 "}) {
    EXPECT_FALSE(is_public_address(address)) << address;
  }
}

TEST(AddressClass, SeesPrivateHostsInUrls) {
  for (const char* url :
       {"http://localhost/x", "http://a.localhost:80/", "https://127.0.0.1:9/", "http://[::1]/",
        "http://[fe80::1]/x", "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data",
        "http://0x7f.1/", "http://2130706433/"}) {
    EXPECT_TRUE(names_private_host(*parse_uri(url))) << url;
  }
  for (const char* url : {"https://example.org/", "https://8.8.8.8/", "http://[2606:4700::1]/",
                          "https://10.0.0.1.example.org/", "https://localhost.example.org/"}) {
    EXPECT_FALSE(names_private_host(*parse_uri(url))) << url;
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
