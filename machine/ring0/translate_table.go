package ring0

// blockTable finds blocks by their code and TLB: it holds numbers of blocks, with 0 for none,
// each in the first free place from that of its hash on; one that is gone leaves its place to
// another of the same code.
type blockTable [1 << 19]uint32

// maxBlocks is how many blocks there may be.
const maxBlocks = len(blockTable{}) / 2

func blockHash(host uint64, tlb int) uint32 {
	return uint32((host*3+uint64(tlb))*0x9e3779b97f4a7c15>>32) % uint32(len(blockTable{}))
}

func (t *blockTable) add(blocks []translation, n uint32) {
	i := blockHash(blocks[n].host, int(blocks[n].tlb))
	for t[i] != 0 && !(blocks[t[i]].gone && blocks[t[i]].host == blocks[n].host) {
		i = (i + 1) % uint32(len(t))
	}
	t[i] = n
}

// find returns the number of a block, 0 if there is none.
func (t *blockTable) find(blocks []translation, host, next uint64, tlb int) uint32 {
	for i := blockHash(host, tlb); t[i] != 0; i = (i + 1) % uint32(len(t)) {
		if b := &blocks[t[i]]; b.host == host && b.next == next && int(b.tlb) == tlb && !b.gone {
			return t[i]
		}
	}
	return 0
}
