//! What the bench `scale` makes of its numbers: how a cost grows with the cluster, and what other shapes of a cluster would
//! cost.

/// A cost that grows in a line: `fixed + each * nodes`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// With no node at all.
    pub fixed: f64,
    /// More for each node.
    pub each: f64,
}

impl Line {
    /// The line of least squares through points of nodes and cost, each error in relation to its cost, so that small
    /// clusters count like large ones. None for less than two sizes.
    pub fn through(points: &[(f64, f64)]) -> Option<Self> {
        let sum = |of: fn(f64, f64) -> f64| {
            points.iter().map(|&(nodes, cost)| of(nodes, cost) / (cost * cost)).sum::<f64>()
        };
        let (one, x, xx) = (sum(|_, _| 1.0), sum(|n, _| n), sum(|n, _| n * n));
        let (y, xy) = (sum(|_, cost| cost), sum(|n, cost| n * cost));
        let spread = one * xx - x * x;
        let line = Self { fixed: (y * xx - x * xy) / spread, each: (one * xy - x * y) / spread };
        (line.fixed.is_finite() && line.each.is_finite()).then_some(line)
    }

    /// The cost at so many nodes.
    pub fn at(self, nodes: f64) -> f64 {
        self.fixed + self.each * nodes
    }

    /// From how many nodes on the cost is above the limit; none when it never is.
    pub fn passes(self, limit: f64) -> Option<f64> {
        (self.each > 0.0).then(|| ((limit - self.fixed) / self.each).max(0.0))
    }
}

/// What the parts of a cluster cost, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// Memory of one end of a link, in bytes.
    pub link_bytes: f64,
    /// Bytes a second of one idle link, both directions, without gossip.
    pub link_rate: f64,
    /// Bytes a second of the gossip of one node, for each node that it hears of.
    pub gossip_rate: f64,
    /// Memory of one row of the table (a room at a peer), in bytes.
    pub row_bytes: f64,
}

/// How a cluster is linked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Each node with each.
    Mesh,
    /// Meshes of so many nodes, of which so many relay to the other meshes; each relay has a link to one relay of every other
    /// mesh. Who relays keeps the rooms of other meshes as filters of so many bits a room, others only those of their mesh.
    Groups {
        /// Nodes of a mesh.
        size: f64,
        /// Relays of a mesh.
        relays: f64,
        /// Bits of a filter for each room.
        bits: f64,
    },
}

/// What the busiest node of a cluster has when nothing is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burden {
    /// Its links.
    pub links: f64,
    /// Their memory, in bytes.
    pub link_memory: f64,
    /// Its idle traffic, in bytes a second, what it sends and what comes.
    pub rate: f64,
    /// What it knows of the rooms of others, in bytes.
    pub table: f64,
    /// Links that a message crosses at most.
    pub hops: u32,
}

/// The busiest of so many nodes, each with so many rooms of its own.
pub fn burden(shape: Shape, nodes: f64, rooms: f64, costs: &Costs) -> Burden {
    let (links, heard, table, hops) = match shape {
        Shape::Mesh => (nodes - 1.0, nodes, (nodes - 1.0) * rooms * costs.row_bytes, 1),
        Shape::Groups { size, relays, bits } => {
            let others = (nodes / size - 1.0).max(0.0);
            let own = (size.min(nodes) - 1.0) * rooms * costs.row_bytes;
            let filters = others * size * rooms * bits / 8.0;
            // Meshes gossip for themselves, relays once more among relays.
            let heard = size.min(nodes) + (others + 1.0) * relays;
            (size.min(nodes) - 1.0 + others, heard, own + filters, if others > 0.0 { 3 } else { 1 })
        }
    };
    Burden {
        links,
        link_memory: links * costs.link_bytes,
        rate: links * costs.link_rate + heard * costs.gossip_rate,
        table,
        hops,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs { link_bytes: 100.0, link_rate: 10.0, gossip_rate: 1.0, row_bytes: 16.0 };

    #[test]
    fn a_line_is_found_and_says_where_it_passes_a_limit() {
        let line = Line::through(&[(3.0, 16.0), (10.0, 30.0), (100.0, 210.0)]).unwrap();
        assert!((line.fixed - 10.0).abs() < 1e-9 && (line.each - 2.0).abs() < 1e-9, "{line:?}");
        assert!((line.at(50.0) - 110.0).abs() < 1e-9);
        assert!((line.passes(110.0).unwrap() - 50.0).abs() < 1e-9);
        assert_eq!(Line { fixed: 1.0, each: 0.0 }.passes(2.0), None);
        assert_eq!(Line::through(&[(3.0, 16.0)]), None);
    }

    #[test]
    fn a_mesh_has_a_link_and_rows_for_each_other_node() {
        let all = burden(Shape::Mesh, 11.0, 2.0, &COSTS);
        let expected = Burden { links: 10.0, link_memory: 1000.0, rate: 111.0, table: 320.0, hops: 1 };
        assert_eq!(all, expected);
    }

    #[test]
    fn groups_have_few_links_and_more_hops() {
        let shape = Shape::Groups { size: 10.0, relays: 2.0, bits: 8.0 };
        let relay = burden(shape, 100.0, 2.0, &COSTS);
        // Nine in its mesh and one for each other mesh; it hears of its mesh and of all 20 relays.
        let table = 9.0 * 2.0 * 16.0 + 90.0 * 2.0;
        let expected = Burden { links: 18.0, link_memory: 1800.0, rate: 210.0, table, hops: 3 };
        assert_eq!(relay, expected);
        // One mesh alone is a mesh.
        let alone = burden(shape, 10.0, 2.0, &COSTS);
        assert_eq!((alone.links, alone.hops), (9.0, 1));
    }
}
