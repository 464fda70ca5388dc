package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// query is a DNS query of the guest's (RFC 1035). What the gateway does not answer
// itself is passed on as it came: only its ID is another one.
type query struct {
	message   []byte
	header    dnsmessage.Header
	questions []dnsmessage.Question
	room      uint16 // the largest answer that the guest takes by UDP, in bytes
}

const (
	minRoom    = 512 // RFC 1035, 4.2.1
	maxMessage = 1<<16 - 1
)

var errNoQuery = errors.New("not a query")

func parseQuery(message []byte) (*query, error) {
	q := &query{message: message, room: minRoom}
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(message); err != nil {
		return nil, err
	}
	if q.header.Response {
		return nil, errNoQuery
	}
	if q.questions, err = p.AllQuestions(); err != nil {
		return nil, err
	}
	if err := errors.Join(p.SkipAllAnswers(), p.SkipAllAuthorities()); err != nil {
		return nil, err
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return q, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Type == dnsmessage.TypeOPT { // RFC 6891, 6.1.2
			q.room = max(q.room, uint16(h.Class))
		}
		if err := p.SkipAdditional(); err != nil {
			return nil, err
		}
	}
}

// reply makes an answer of the gateway's own, with a record if there is one.
func (q *query) reply(code dnsmessage.RCode, addr netip.Addr) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired,
		Authoritative: addr.IsValid() || code == dnsmessage.RCodeNameError, RecursionAvailable: true, RCode: code,
	})
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	for _, question := range q.questions {
		if err := b.Question(question); err != nil {
			return nil, err
		}
	}
	if addr.IsValid() {
		if err := b.StartAnswers(); err != nil {
			return nil, err
		}
		h := dnsmessage.ResourceHeader{Name: q.questions[0].Name, Class: dnsmessage.ClassINET, TTL: nameTTL}
		var err error
		if addr.Is4() {
			err = b.AResource(h, dnsmessage.AResource{A: addr.As4()})
		} else {
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: addr.As16()})
		}
		if err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// truncated makes an answer that is too large for UDP one that says so: the guest asks
// again by TCP.
func (q *query) truncated(answer []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(answer)
	if err != nil {
		return nil, err
	}
	h.Truncated = true
	return (&dnsmessage.Message{Header: h, Questions: q.questions}).Pack()
}

// exchange asks a server, with an ID that the guest does not know.
func (q *query) exchange(ctx context.Context, network, server string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	id := uint16(rand.Uint32())
	message := bytes.Clone(q.message)
	binary.BigEndian.PutUint16(message, id)
	if network == "udp" {
		_, err = c.Write(message)
	} else {
		err = writeMessage(c, message)
	}
	buf := make([]byte, maxMessage)
	for err == nil {
		var a []byte
		if network == "udp" {
			var n int
			n, err = c.Read(buf)
			a = buf[:n]
		} else {
			a, err = readMessage(c)
		}
		if err == nil && q.answeredBy(a, id) {
			binary.BigEndian.PutUint16(a, q.header.ID)
			return a, nil
		}
	}
	return nil, err
}

// answeredBy reports whether a message is the answer to the query with that ID.
func (q *query) answeredBy(message []byte, id uint16) bool {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || !h.Response || h.ID != id {
		return false
	}
	questions, err := p.AllQuestions()
	return err == nil && (len(questions) == 0 || slices.EqualFunc(questions, q.questions, func(a, b dnsmessage.Question) bool {
		return a.Type == b.Type && a.Class == b.Class && strings.EqualFold(a.Name.String(), b.Name.String())
	}))
}

// readMessage reads a message of a stream, which is behind its length.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeMessage(w io.Writer, message []byte) error {
	if len(message) > maxMessage {
		return errors.New("too large")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}
