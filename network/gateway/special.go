package gateway

import "net/netip"

// unlisted are the destinations that only a rule opens: the host itself, its links, and
// where clouds tell a machine its credentials.
var unlisted = prefixes(
	"0.0.0.0/8",      // "this host": RFC 1122, section 3.2.1.3
	"127.0.0.0/8",    // loopback: RFC 1122, section 3.2.1.3
	"::/128",         // unspecified: RFC 4291, section 2.5.2
	"::1/128",        // loopback: RFC 4291, section 2.5.3
	"fe80::/10",      // link-local: RFC 4291, section 2.5.6
	"fec0::/10",      // site-local, deprecated, routed by nobody: RFC 3879
	"64:ff9b:1::/48", // translation to IPv4 of a network's own kind, which only that network can read: RFC 8215

	// Metadata services. Most clouds have theirs in 169.254.0.0/16: link-local, RFC 3927.
	"169.254.0.0/16",
	"100.100.100.200/32",     // Alibaba Cloud: "Instance metadata"
	"fd00:100::100:200/128",  // Alibaba Cloud, over IPv6
	"168.63.129.16/32",       // Azure, WireServer: "What is IP address 168.63.129.16?"
	"192.0.0.192/32",         // Oracle Cloud, Classic: "Retrieving instance metadata"
	"fd00:c1::a9fe:a9fe/128", // Oracle Cloud, over IPv6: the Python SDK's instance principals
	"fd00:ec2::/32",          // AWS: ::254 metadata, ::23 EKS Pod Identity, ::253 DNS, ::123 time: EC2's and EKS' user guides
	"fd20:ce::254/128",       // Google Cloud: "About VM metadata", machines that have IPv6 only
	"fd00:42::42/128",        // Scaleway: cloud-init's DataSourceScaleway
	"fd00:a9fe:a9fe::1/128",  // Akamai, Linode: "Metadata service API"
)

// embeddings are the IPv6 networks whose addresses have an IPv4 address in them, at an
// offset of bytes. Whoever routes such a network sends what goes there to the IPv4
// address, so that is judged too.
var embeddings = []struct {
	net      netip.Prefix
	at       int
	inverted bool
}{
	{netip.MustParsePrefix("::/96"), 12, false},           // IPv4-compatible: RFC 4291, section 2.5.5.1
	{netip.MustParsePrefix("::ffff:0:0/96"), 12, false},   // IPv4-mapped: RFC 4291, section 2.5.5.2
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12, false}, // IPv4-translated: RFC 2765, section 2.1
	{netip.MustParsePrefix("64:ff9b::/96"), 12, false},    // NAT64's well-known prefix: RFC 6052, section 2.1
	{netip.MustParsePrefix("2002::/16"), 2, false},        // 6to4: RFC 3056, section 2
	{netip.MustParsePrefix("2001::/32"), 12, true},        // Teredo, the client's: RFC 4380, section 4
}

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// embedded returns the IPv4 address that is in an IPv6 address; the zero Addr, which no
// network contains, if there is none.
func embedded(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return netip.Addr{}
	}
	b := a.As16()
	for _, e := range embeddings {
		if !e.net.Contains(a) {
			continue
		}
		v4 := [4]byte(b[e.at:])
		if e.inverted {
			for i := range v4 {
				v4[i] ^= 0xff
			}
		}
		return netip.AddrFrom4(v4)
	}
	return netip.Addr{}
}

// onlyByRule tells whether an address, or the one in it, is one of unlisted.
func onlyByRule(a, inside netip.Addr) bool {
	for _, n := range unlisted {
		if n.Contains(a) || n.Contains(inside) {
			return true
		}
	}
	return false
}
